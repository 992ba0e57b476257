"""Two executions give the same bytes: run the notebooks a second time, compare, and keep what was found.

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

from qkrepro.execution import find_chapters, run_apart, stale_inputs
from qkrepro.figure_numbers import COMMITTED_PROFILE, book_root, numbers_folder
from qkrepro.notebooks import read_notebook, replace_file
from qkrepro.results import environment

KEPT = "book/generated/repetition.csv"
COLUMNS = ["notebook", "text", "text_again", "pictures", "pictures_again", "numbers", "numbers_again"]


def repeat_figures(names: Sequence[str] = (), *, say: Callable[[str], None] = print) -> list[str]:
    """Execute the named notebooks (default: all) once more, apart, and return those that gave something else.

    Changes no notebook; the digests of both executions are kept in `book/generated/repetition.csv`, from which the site
    shows the check. A notebook whose outputs are stale is left out: there is nothing to compare with. Raises
    ArgumentError for an unknown name, NotebookError when a notebook fails.
    """
    root, rows = book_root(), []
    for chapter in find_chapters(root, names, COMMITTED_PROFILE):
        if stale := stale_inputs(root, chapter):
            say(f"{chapter.name}: not repeated, its outputs are stale ({stale[0]})")
            continue
        with tempfile.TemporaryDirectory(prefix="qkrepro-") as scratch:
            again, cost = run_apart(root, chapter, Path(scratch), chapter.name)
            numbers = Path(scratch) / "numbers" / f"{chapter.name}.json"
            found = output_digests(again, numbers)
        before = output_digests(read_notebook(chapter.target), numbers_folder() / numbers.name)
        rows.append([chapter.name, *(digest for pair in zip(before, found, strict=True) for digest in pair)])
        say(f"{chapter.name}: {cost.wall_s:.1f} s, {'the same' if before == found else 'NOT the same'}")
    table = pd.DataFrame(rows, columns=COLUMNS)
    _keep(root, table)
    return [str(row["notebook"]) for _, row in table.iterrows() if _differs(row)]


def output_digests(notebook: NotebookNode, numbers: Path) -> tuple[str, str, str]:
    """Digests of a notebook's text outputs, of its pictures, and of its file of numbers (empty: there is none)."""
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
    """The check as a table for the site, MyST Markdown: one row a notebook, judged from the kept digests.

    A notebook whose outputs are no longer those that were repeated says so.
    """
    path = root / KEPT
    kept = pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame(columns=COLUMNS)
    by_name = {row["notebook"]: row for _, row in kept.iterrows()}
    lines = ["| notebook | text outputs | pictures | numbers |", "| --- | --- | --- | --- |"]
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        numbers = root / "notebooks" / "numbers" / f"{notebook.stem}.json"
        now = dict(zip(("text", "pictures", "numbers"), output_digests(read_notebook(notebook), numbers), strict=True))
        row = by_name.get(notebook.stem)
        if row is None or any(row[what] != digest for what, digest in now.items()):
            said = ["not repeated since it was executed", "", ""]
        else:
            said = ["the same" if row[what] == row[f"{what}_again"] else "**different**" for what in now]
        lines.append(f"| {{doc}}`../notebooks/{notebook.stem}` | {' | '.join(said)} |")
    places = sorted(set(kept["where"])) if "where" in kept else []
    return "\n".join(lines) + "\n" + "".join(f"\nRepeated with {where}.\n" for where in places)


def _keep(root: Path, table: pd.DataFrame) -> None:
    """Put the rows beside those of other notebooks that were kept before."""
    found, path = environment(), root / KEPT
    where = f"Python {platform.python_version()}, PyTorch {found['torch']}, {found['processor']}"
    table = table.assign(where=where)
    if path.is_file():
        old = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = pd.concat([old[~old["notebook"].isin(table["notebook"])], table])
    text = table.sort_values("notebook").to_csv(index=False, lineterminator="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())


def _differs(row: "pd.Series[str]") -> bool:
    return any(row[what] != row[f"{what}_again"] for what in ("text", "pictures", "numbers"))
