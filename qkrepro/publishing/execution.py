"""Execute the notebooks whose inputs changed, with papermill underneath; `staleness` says which those are.

A notebook runs to the end or leaves what is committed as it was. At the committed profile it is replaced in place; any
other profile goes to `_build/<profile>/notebooks`, so that it never feeds a verdict.
"""

import ast
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    png_outputs,
    read_notebook,
    with_colab_cell,
    with_parameters,
    write_notebook,
)
from qkrepro.publishing.staleness import changed_inputs, input_digests
from qkrepro.training.records import processor

CENTRAL_FIGURE = ("both_at_once", "central-figure", "book/images/both_at_once.png")  # notebook, tag of a cell, picture
THREADS = "1"  # of each library; a notebook sets those of PyTorch
WORKERS = 2  # notebooks at once; each needs up to 1.1 GB
TIMEOUT = 3600  # seconds per cell


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

    force: execute those that are up to date too. check: name what is stale and execute nothing. log: takes the lines.
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
    listed = root / "notebooks" / "profiles" / f"{profile}.yaml"
    entries = {} if profile == COMMITTED_PROFILE else yaml.safe_load(listed.read_text(encoding="utf-8")) or {}
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


def execute(root: Path, chapter: Chapter, label: str) -> Cost:
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


def run_apart(root: Path, chapter: Chapter, scratch: Path, label: str) -> tuple[NotebookNode, Cost]:
    """Run one chapter in the empty folder `scratch` and touch nothing else; its numbers are in `scratch/numbers`.

    root: the checkout. label: what a progress bar says.
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
    """Return the PNG of the cell tagged as the central figure, for README and front page; None in other chapters."""
    name, tag, _ = CENTRAL_FIGURE
    if chapter.name != name or chapter.profile != COMMITTED_PROFILE:
        return None
    if pictures := png_outputs(notebook, tag):
        return pictures[0]
    raise NotebookError(f"{name} has no cell with tag {tag!r} and a PNG output; the front page shows that picture")


def _environment(root: Path, numbers: Path, scratch: str) -> dict[str, str]:
    """Return the variables of a kernel: this checkout's package, fixed threads, numbers apart, no user settings."""
    dropped = {"MPLBACKEND", "COLUMNS", "LINES", "PYTHONWARNINGS", "PYTHONSTARTUP"}
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    fixed = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), THREADS)
    fixed |= {"PYTHONPATH": paths, "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    fixed |= {FOLDER_VARIABLE: str(numbers), "IPYTHONDIR": str(Path(scratch) / "ipython")}
    return {name: value for name, value in os.environ.items() if name not in dropped} | fixed


def reads(root: Path, name: str) -> tuple[str, ...]:
    """Return the patterns of the records that a chapter reads: READS of its module, parsed and not imported."""
    module = root / "qkrepro" / "chapters" / f"{name}.py"
    for node in ast.parse(module.read_text(encoding="utf-8")).body if module.is_file() else []:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "READS":
            return tuple(ast.literal_eval(node.value))
    return ()


def _because(changed: Sequence[str]) -> str:
    shown = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
    return shown if changed[0] in ("forced", "no outputs yet") else f"changed: {shown}"


def _keep_cost(root: Path, chapter: Chapter, cost: Cost) -> None:
    path = root / "_build" / chapter.profile / "costs.json"
    costs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    costs[chapter.name] = {name: round(value, 2) for name, value in asdict(cost).items()}
    write_atomically(path, (json.dumps(costs, indent=1, sort_keys=True) + "\n").encode())
