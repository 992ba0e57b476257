"""Two executions give the same bytes: run the notebooks a second time, compare, and keep the digests of both.

What is compared: every text output of the committed notebook, its pictures, and the numbers behind its figures.
"""

import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from nbformat import NotebookNode

from qkrepro.evidence.numbers import COMMITTED_PROFILE, book_root, numbers_folder
from qkrepro.files import write_atomically
from qkrepro.publishing.execution import find_chapters, run_apart, stale_inputs
from qkrepro.publishing.notebooks import chapter_names, read_notebook
from qkrepro.training.records import environment

KEPT = "book/generated/repetition.csv"
PARTS = ("text", "pictures", "numbers")
COLUMNS = ["notebook", *(f"{part}{again}" for part in PARTS for again in ("", "_again")), "where"]


def repeat_figures(names: Sequence[str] = (), *, log: Callable[[str], None] = print) -> list[str]:
    """Execute the named notebooks (default: all) once more, apart, and return those that gave something else.

    Changes no notebook; the digests of both executions are kept in `book/generated/repetition.csv`, from which the site
    shows the check. A notebook whose outputs are stale is left out: there is nothing to compare with. Raises
    ArgumentError for an unknown name, NotebookError when a notebook fails.
    """
    root, rows, different = book_root(), [], []
    for chapter in find_chapters(root, names, COMMITTED_PROFILE):
        if stale := stale_inputs(root, chapter):
            log(f"{chapter.name}: not repeated, its outputs are stale ({stale[0]})")
            continue
        with tempfile.TemporaryDirectory(prefix="qkrepro-") as scratch:
            again, cost = run_apart(root, chapter, Path(scratch), chapter.name)
            numbers = Path(scratch) / "numbers" / f"{chapter.name}.json"
            after = output_digests(again, numbers)
        before = output_digests(read_notebook(chapter.target), numbers_folder() / numbers.name)
        rows.append([chapter.name, *(digest for pair in zip(before, after, strict=True) for digest in pair)])
        different += [chapter.name] * (before != after)
        log(f"{chapter.name}: {cost.wall_s:.1f} s, {'the same' if before == after else 'NOT the same'}")
    versions = environment()
    where = f"Python {platform.python_version()}, PyTorch {versions['torch']}, {versions['processor']}"
    kept, table = _kept(root), pd.DataFrame([[*row, where] for row in rows], columns=COLUMNS)
    table = pd.concat([kept[~kept["notebook"].isin(table["notebook"])], table]).sort_values("notebook")
    write_atomically(root / KEPT, table.to_csv(index=False, lineterminator="\n").encode())
    return different


def output_digests(notebook: NotebookNode, numbers: Path) -> tuple[str, str, str]:
    """Return the digests of a notebook's text outputs, its pictures and its file of numbers ("" without the file)."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [value for o in outputs for kind, value in sorted(o.get("data", {}).items()) if kind[:6] == "image/"]
    words = [
        [o.output_type, o.get("text"), {k: v for k, v in o.get("data", {}).items() if k[:6] != "image/"}]
        for o in outputs
    ]
    parts = json.dumps(words, sort_keys=True), json.dumps(pictures), numbers.read_text() if numbers.is_file() else ""
    text, drawn, saved = (hashlib.sha256(part.encode()).hexdigest()[:16] if part else "" for part in parts)
    return text, drawn, saved


def repetition_page(root: Path) -> str:
    """Return the check as a table for the site, MyST Markdown: one row per notebook, judged from the kept digests.

    A notebook whose outputs are no longer those that were repeated says so.
    """
    kept = _kept(root)
    by_name = {row["notebook"]: row for _, row in kept.iterrows()}
    lines = ["| notebook | text outputs | pictures | numbers |", "| --- | --- | --- | --- |"]
    for notebook in (root / "notebooks" / f"{name}.ipynb" for name in chapter_names(root)):
        numbers = root / "notebooks" / "numbers" / f"{notebook.stem}.json"
        now = dict(zip(PARTS, output_digests(read_notebook(notebook), numbers), strict=True))
        row = by_name.get(notebook.stem)
        if row is None or any(row[part] != digest for part, digest in now.items()):
            results = ["not repeated since it was executed", "", ""]
        else:
            results = ["the same" if row[part] == row[f"{part}_again"] else "**different**" for part in PARTS]
        lines.append(f"| {{doc}}`../notebooks/{notebook.stem}` | {' | '.join(results)} |")
    return "\n".join(lines) + "\n" + "".join(f"\nRepeated with {where}.\n" for where in sorted(set(kept["where"])))


def _kept(root: Path) -> pd.DataFrame:
    """Return the digests that are kept, one row per notebook; no rows without the file."""
    path = root / KEPT
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame(columns=COLUMNS)
