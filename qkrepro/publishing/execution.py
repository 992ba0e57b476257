"""Execute the notebooks whose inputs changed, with papermill underneath; `staleness` says which those are.

A notebook runs to the end or leaves what is committed as it was. At the committed profile it is replaced in place; any
other profile goes to `_build/<profile>/notebooks`, so that it never feeds a verdict.

Two executions give the same bytes: run the notebooks a second time, compare, and keep what was found.

What is compared: every text output of the committed notebook, its pictures, and the numbers behind its figures.
"""

import ast
import base64
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml
from nbformat import NotebookNode

from qkrepro.errors import NotebookError, check_choice
from qkrepro.evidence.numbers import COMMITTED_PROFILE, FOLDER_VARIABLE, book_root, describe_execution, numbers_folder
from qkrepro.files import write_atomically
from qkrepro.publishing.notebooks import (
    chapter_names,
    clean,
    code_cells,
    colab_cell,
    default_parameters,
    outputs_digest,
    read_notebook,
    with_colab_cell,
    with_parameters,
    write_notebook,
)
from qkrepro.publishing.staleness import changed_inputs, input_digests
from qkrepro.training.records import environment, processor

CENTRAL_FIGURE = (
    "both_at_once",
    "central-figure",
    "book/images/both_at_once.png",
)  # notebook, tag of its cell, picture
THREADS = "1"  # of each library; a notebook sets those of PyTorch
WORKERS = 2  # notebooks at once; each needs up to 1.1 GB
TIMEOUT = 3600  # seconds per cell
KEPT = "book/generated/repetition.csv"
COLUMNS = ["notebook", "text", "text_again", "pictures", "pictures_again", "numbers", "numbers_again"]


@dataclass(frozen=True)
class Chapter:
    """A notebook at a profile: what it is read from, where its outputs go, its parameters and the records it reads."""

    name: str
    profile: str
    source: Path
    target: Path
    parameters: dict[str, Any]
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What an execution took: wall and processor seconds, peak memory of the kernel in MB (0 where it is not known)."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def run_figures(
    names: Sequence[str] = (),
    profile: str = COMMITTED_PROFILE,
    *,
    force: bool = False,
    check: bool = False,
    log: Callable[[str], None] = print,
) -> list[str]:
    """Execute the stale ones of the named notebooks (default: all), with a line about each; returns their names.

    force: execute those that are up to date too. check: name what is stale and execute nothing.
    Raises ArgumentError for an unknown name or profile, NotebookError when a notebook failed (after the others ran).
    """
    root = book_root()
    chapters = find_chapters(root, names, profile)
    reasons = {chapter.name: ["forced"] if force else stale_inputs(root, chapter) for chapter in chapters}
    todo = [chapter for chapter in chapters if reasons[chapter.name]]
    log(f"profile {profile}: {len(chapters) - len(todo)} of {len(chapters)} notebooks up to date, {len(todo)} to run")
    if names and not todo:
        log("nothing to run, since nothing that they depend on changed; --force executes them all the same")
    labels = [f"[{number}/{len(todo)}] {chapter.name}" for number, chapter in enumerate(todo, 1)]
    for label, chapter in zip(labels, todo, strict=True):
        log(f"{label}: {_because(reasons[chapter.name])}")
    failures = [] if check else _execute_side_by_side(root, dict(zip(labels, todo, strict=True)), log)
    if failures:
        raise NotebookError(
            f"{len(failures)} of {len(todo)} notebooks failed, nothing of them changed: {'; '.join(failures)}"
        )
    return [chapter.name for chapter in todo]


def _execute_side_by_side(root: Path, chapters: Mapping[str, Chapter], log: Callable[[str], None]) -> list[str]:
    """Execute chapters by label, WORKERS at a time, with a line when one is done; returns what failed, in words."""
    failures = []
    with ThreadPoolExecutor(WORKERS) as pool:
        runs = {pool.submit(execute, root, chapter, label): label for label, chapter in chapters.items()}
        try:
            for done, run in enumerate(as_completed(runs), 1):
                label = runs[run]
                try:
                    cost = run.result()
                except NotebookError as error:
                    failures.append(str(error))
                    log(f"{label}: FAILED, {error}")
                    continue
                _keep_cost(root, chapters[label], cost)
                used = f"{cost.wall_s:.1f} s (CPU {cost.cpu_s:.1f} s, peak {cost.peak_mb:.0f} MB)"
                log(f"{label}: {used}, {len(runs) - done} left")
        except BaseException:  # Ctrl-C too: nothing goes on behind the reader's back
            pool.shutdown(wait=False, cancel_futures=True)
            for kernel in psutil.Process().children():
                kernel.terminate()
            raise
    return failures


def find_chapters(root: Path, names: Sequence[str], profile: str) -> list[Chapter]:
    """Return the named notebooks (none named: all) at a profile, in the order of the book.

    The parameters cell of a notebook is the committed profile; `notebooks/profiles/NAME.yaml` lists what another one
    changes in it. Raises ArgumentError for an unknown name or profile, and for a parameter that the notebook has not.
    """
    profiles = sorted(path.stem for path in (root / "notebooks" / "profiles").glob("*.yaml"))
    check_choice("profile", profile, [COMMITTED_PROFILE, *profiles])
    entries = {} if profile == COMMITTED_PROFILE else _yaml(root / "notebooks" / "profiles" / f"{profile}.yaml")
    known = chapter_names(root)
    wanted = [Path(name).stem if name.endswith(".ipynb") else name for name in names] or known
    for name in wanted:
        check_choice("notebook", name, known)
    folder = root / "notebooks" if profile == COMMITTED_PROFILE else root / "_build" / profile / "notebooks"
    chapters = []
    for name in (name for name in known if name in wanted):
        source = root / "notebooks" / f"{name}.ipynb"
        defaults = default_parameters(read_notebook(source))
        changes = entries.get(name) or {}
        for parameter in ("profile", *changes):
            check_choice(f"parameter of {name} at profile {profile}", parameter, defaults)
        parameters = defaults | changes | {"profile": profile}
        chapters.append(Chapter(name, profile, source, folder / source.name, parameters, reads(root, name)))
    return chapters


def stale_inputs(root: Path, chapter: Chapter) -> list[str]:
    """Return what changed since the outputs of a chapter were made; empty when they are current."""
    if not chapter.target.is_file():
        return ["no outputs yet"]
    notebook = read_notebook(chapter.target)
    made: dict[str, Any] = notebook.metadata.get("qkrepro", {})
    if not made.get("inputs"):
        return ["no outputs yet"]
    changed = changed_inputs(made["inputs"], digests(root, chapter))
    by_hand = made.get("outputs") != outputs_digest(notebook)
    return changed + ["outputs, by a run that was not `qkrepro figures`"] * by_hand


def digests(root: Path, chapter: Chapter) -> dict[str, str]:
    """Return the digests of what the outputs of a chapter follow from."""
    cells = [cell.source for cell in code_cells(read_notebook(chapter.source))]
    return input_digests(root, cells, chapter.parameters, chapter.reads)


def execute(root: Path, chapter: Chapter, label: str = "") -> Cost:
    """Run one chapter to a temporary file and put it, its numbers and the central figure in place when it succeeded.

    Raises NotebookError naming the cell and the error; the run that failed is kept under `_build/failed`.
    """
    numbers = numbers_folder(chapter.profile)
    with tempfile.TemporaryDirectory(prefix="qkrepro-") as scratch:
        result, cost = run_apart(root, chapter, Path(scratch), label)
        picture = central_figure(chapter, result)
        made = Path(scratch) / "numbers" / f"{chapter.name}.json"
        if made.is_file():
            write_atomically(numbers / made.name, made.read_bytes())
        if picture:
            write_atomically(root / CENTRAL_FIGURE[2], picture)
        write_notebook(result, chapter.target)
    return cost


def run_apart(root: Path, chapter: Chapter, scratch: Path, label: str = "") -> tuple[NotebookNode, Cost]:
    """Run one chapter in the empty folder `scratch` and touch nothing else; its numbers are in `scratch/numbers`.

    Raises NotebookError naming the cell and the error; the run that failed is kept under `_build/failed`.
    """
    from papermill import PapermillExecutionError

    from qkrepro.publishing.kernel import run_notebook

    inputs = digests(root, chapter)  # before the run: a module edited meanwhile makes the outputs stale
    draft, made = scratch / chapter.source.name, scratch / "numbers"
    made.mkdir()
    for path in sorted(numbers_folder(chapter.profile).glob("*.json")):
        shutil.copy2(path, made)
    source = with_parameters(read_notebook(chapter.source), chapter.parameters)
    for_colab = colab_cell(source)  # not run here: with and without it the same bytes come out
    write_notebook(with_colab_cell(source, None), draft)
    start = time.perf_counter()
    try:
        environment = _environment(root, made, str(scratch))
        cpu_s, peak_mb = run_notebook(draft, chapter.source.parent, environment, label, TIMEOUT)
    except PapermillExecutionError as error:
        failed = root / "_build" / "failed" / draft.name
        failed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(draft, failed)
        what = " ".join(str(error.evalue).split())
        raise NotebookError(f"{chapter.name}, cell {error.cell_index}: {error.ename}: {what}") from error
    cost = Cost(time.perf_counter() - start, cpu_s, peak_mb)
    describe_execution(made / f"{chapter.name}.json", chapter.parameters, processor())
    result = clean(read_notebook(draft), {"profile": chapter.profile, "inputs": inputs})
    result.metadata["qkrepro"]["outputs"] = outputs_digest(result)
    return with_colab_cell(result, for_colab), cost


def central_figure(chapter: Chapter, notebook: NotebookNode) -> bytes | None:
    """Return the PNG of the cell tagged as the central figure, for the README and the front page.

    It is None in other chapters.
    """
    name, tag, _ = CENTRAL_FIGURE
    if chapter.name != name or chapter.profile != COMMITTED_PROFILE:
        return None
    for cell in notebook.cells:
        for output in cell.get("outputs", []) if tag in cell.metadata.get("tags", []) else []:
            if "image/png" in output.get("data", {}):
                return base64.b64decode(output["data"]["image/png"])
    raise NotebookError(f"{name} has no cell with tag {tag!r} and a PNG output; the front page shows that picture")


def _environment(root: Path, numbers: Path, scratch: str) -> dict[str, str]:
    """Return the environment variables of a kernel.

    This checkout's package, fixed threads, numbers kept apart, no settings of the user's.
    """
    dropped = {"MPLBACKEND", "COLUMNS", "LINES", "PYTHONWARNINGS", "PYTHONSTARTUP"}
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    fixed = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), THREADS)
    fixed |= {"PYTHONPATH": paths, "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    fixed |= {FOLDER_VARIABLE: str(numbers), "IPYTHONDIR": str(Path(scratch) / "ipython")}
    return {name: value for name, value in os.environ.items() if name not in dropped} | fixed


def reads(root: Path, name: str) -> tuple[str, ...]:
    """Return the patterns of the records that a chapter reads.

    They are READS of its module, which is parsed and not imported.
    """
    module = root / "qkrepro" / "chapters" / f"{name}.py"
    statements = ast.parse(module.read_text(encoding="utf-8")).body if module.is_file() else []
    for statement in statements:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == ["READS"]:
            return tuple(ast.literal_eval(statement.value))
    return ()


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content or {}


def _because(changed: Sequence[str]) -> str:
    shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
    return shown if changed[0] in ("forced", "no outputs yet") else f"changed: {shown}"


def _keep_cost(root: Path, chapter: Chapter, cost: Cost) -> None:
    path = root / "_build" / chapter.profile / "costs.json"
    costs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    costs[chapter.name] = {name: round(value, 2) for name, value in asdict(cost).items()}
    write_atomically(path, (json.dumps(costs, indent=1, sort_keys=True) + "\n").encode())


def repeat_figures(names: Sequence[str] = (), *, log: Callable[[str], None] = print) -> list[str]:
    """Execute the named notebooks (default: all) once more, apart, and return those that gave something else.

    Changes no notebook; the digests of both executions are kept in `book/generated/repetition.csv`, from which the site
    shows the check. A notebook whose outputs are stale is left out: there is nothing to compare with. Raises
    ArgumentError for an unknown name, NotebookError when a notebook fails.
    """
    root, rows = book_root(), []
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
        log(f"{chapter.name}: {cost.wall_s:.1f} s, {'the same' if before == after else 'NOT the same'}")
    table = pd.DataFrame(rows, columns=COLUMNS)
    _keep(root, table)
    return [str(row["notebook"]) for _, row in table.iterrows() if _differs(row)]


def output_digests(notebook: NotebookNode, numbers: Path) -> tuple[str, str, str]:
    """Return the digests of a notebook's text outputs, of its pictures and of its file of numbers.

    A digest is empty where there is no such file.
    """
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
    path = root / KEPT
    kept = pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame(columns=COLUMNS)
    by_name = {row["notebook"]: row for _, row in kept.iterrows()}
    lines = ["| notebook | text outputs | pictures | numbers |", "| --- | --- | --- | --- |"]
    for notebook in (root / "notebooks" / f"{name}.ipynb" for name in chapter_names(root)):
        numbers = root / "notebooks" / "numbers" / f"{notebook.stem}.json"
        now = dict(zip(("text", "pictures", "numbers"), output_digests(read_notebook(notebook), numbers), strict=True))
        row = by_name.get(notebook.stem)
        if row is None or any(row[what] != digest for what, digest in now.items()):
            results = ["not repeated since it was executed", "", ""]
        else:
            results = ["the same" if row[what] == row[f"{what}_again"] else "**different**" for what in now]
        lines.append(f"| {{doc}}`../notebooks/{notebook.stem}` | {' | '.join(results)} |")
    places = sorted(set(kept["where"])) if "where" in kept else []
    return "\n".join(lines) + "\n" + "".join(f"\nRepeated with {where}.\n" for where in places)


def _keep(root: Path, table: pd.DataFrame) -> None:
    """Put the rows beside those of other notebooks that were kept before."""
    versions, path = environment(), root / KEPT
    where = f"Python {platform.python_version()}, PyTorch {versions['torch']}, {versions['processor']}"
    table = table.assign(where=where)
    if path.is_file():
        old = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = pd.concat([old[~old["notebook"].isin(table["notebook"])], table])
    text = table.sort_values("notebook").to_csv(index=False, lineterminator="\n")
    write_atomically(path, text.encode())


def _differs(row: "pd.Series[str]") -> bool:
    return any(row[what] != row[f"{what}_again"] for what in ("text", "pictures", "numbers"))
