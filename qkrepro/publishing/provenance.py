"""Where every figure comes from: its notebook and cell, the profile, the records behind it, and how those were made.

Read from the notebooks, the profiles and the records when the site is built; nothing of it is typed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from qkrepro.evidence.numbers import COMMITTED_PROFILE
from qkrepro.publishing.execution import Chapter, find_chapters
from qkrepro.publishing.notebooks import read_notebook
from qkrepro.publishing.revision import file_revision
from qkrepro.training.records import is_recorded, read_run

EXACT = "no randomness"
COMPUTED_HERE = "computed-here"  # tag of the cell of a figure that rests on no record, in a chapter that reads some


@dataclass(frozen=True)
class FigureOrigin:
    """One figure: what drew it, with which profile and seeds, from which records, and the command that draws it again.

    cell: number that the cell bears in the executed notebook. seeds, reads: of the whole chapter. chance: what the
    figure itself owes to chance. recorded: whether it rests on the records that the chapter reads.
    revision: of the commit that holds the outputs shown.
    """

    name: str
    chapter: str
    cell: int
    profile: str
    seeds: str
    reads: tuple[str, ...]
    revision: str
    command: str
    chance: str = ""
    recorded: bool = True


@dataclass(frozen=True)
class RecordOrigin:
    """One record of a training run: the command and the revision that made it, and the corpus by its digest."""

    sweep: str
    run: str
    seed: int
    kappa: float
    command: str
    revision: str
    corpus: str
    digest: str


def figure_origins(root: Path, profile: str = COMMITTED_PROFILE) -> list[FigureOrigin]:
    """Return every figure of the notebooks of a profile, in the order of the book.

    Notebooks without outputs are left out.
    """
    origins = []
    for chapter in find_chapters(root, [], profile):
        if not chapter.target.is_file():
            continue
        revision = "not committed" if profile != COMMITTED_PROFILE else file_revision(root, chapter.target)
        for cell in read_notebook(chapter.target).cells:
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            if name := figure.get("name"):
                made_here = COMPUTED_HERE in cell.metadata.get("tags", [])
                place = (cell.execution_count, revision)
                origins.append(_origin(chapter, name, figure.get("caption", ""), *place, made_here=made_here))
    return origins


def record_origins(root: Path) -> list[RecordOrigin]:
    """Return every finished record below `results/`, sorted by folder."""
    folders = sorted(path.parent for path in (root / "results").rglob("run.json") if is_recorded(path.parent))
    return [_record(root, folder) for folder in folders]


def write_provenance(root: Path, work: Path, profile: str) -> None:
    """Write what the site shows of it into `work`: the generated part of the page and the line under each figure."""
    figures, records = figure_origins(root, profile), record_origins(root)
    folder = work / "book" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "provenance.md").write_text(provenance_page(figures, records), encoding="utf-8")
    lines = {origin.name: asdict(origin) | {"records": _count(origin, records)} for origin in figures}
    (folder / "figures.json").write_text(json.dumps(lines, indent=1), encoding="utf-8")


def provenance_page(figures: Sequence[FigureOrigin], records: Sequence[RecordOrigin]) -> str:
    """Return the generated part of the provenance page, MyST Markdown.

    Figures by chapter, then records, then corpora.
    """
    rows = []
    for chapter in dict.fromkeys(origin.chapter for origin in figures):
        own = [origin for origin in figures if origin.chapter == chapter]
        drawn = ", ".join(f"{{numref}}`{origin.name}` ({_cell_link(origin)})" for origin in own)
        made = f"{own[0].profile}{own[0].seeds and ', '}{own[0].seeds}"
        again = [_reads(own[0], records), f"`{own[0].revision}`", f"`{own[0].command}`"]
        rows.append([f"{{doc}}`../notebooks/{chapter}`", drawn, made, *again])
    columns = ["chapter", "figures", "profile, seeds", "reads", "outputs of revision", "again with"]
    head = "## From figure to record\n\nA chapter that reads no record computes its figures itself, from its seeds.\n\n"
    return head + _table(columns, rows) + "\n" + _records_section(figures, records)


def _records_section(figures: Sequence[FigureOrigin], records: Sequence[RecordOrigin]) -> str:
    parts = ["## From record to command, revision and corpus\n"]
    for sweep in dict.fromkeys(record.sweep for record in records):
        runs = [record for record in records if record.sweep == sweep]
        readers = dict.fromkeys(o.chapter for o in figures if any(_covers(name, runs[0]) for name in o.reads))
        used = ", ".join(f"{{doc}}`../notebooks/{name}`" for name in readers) or "no chapter"
        rows = [
            [f"`{r.run}`", str(r.seed), f"{r.kappa:g}", f"`{_short(r.revision)}`", f"`{r.digest[:12]}`"] for r in runs
        ]
        parts.append(
            f"### results/{sweep}\n\nMade by `{runs[0].command}`, read by {used}.\n\n"
            f"````{{dropdown}} {len(runs)} record{'s' * (len(runs) > 1)}\n"
            + _table(["record", "seed", "κ", "revision", "corpus digest"], rows)
            + "````\n"
        )
    corpora = sorted({(record.corpus, record.digest) for record in records})
    parts.append("## Corpora\n\nThe digest is SHA-256 over the digests of the files that a corpus was made from.\n")
    parts.append(_table(["corpus", "digest"], [[name, f"`{digest}`"] for name, digest in corpora]))
    return "\n".join(parts)


def _origin(chapter: Chapter, name: str, caption: str, cell: int, revision: str, *, made_here: bool) -> FigureOrigin:
    seeds = ", ".join(f"{key} = {chapter.parameters[key]}" for key in ("seed", "seeds") if key in chapter.parameters)
    option = "--force" if chapter.profile == COMMITTED_PROFILE else f"--profile {chapter.profile} --force"
    command = f"qkrepro figures {chapter.name} {option}"
    recorded = not made_here and any(name.startswith("results/") for name in chapter.reads)
    made = (chapter.name, cell, chapter.profile, seeds, chapter.reads, revision, command)
    return FigureOrigin(name, *made, _chance(caption, chapter.parameters, recorded=recorded), recorded)


def _chance(caption: str, parameters: Mapping[str, Any], *, recorded: bool) -> str:
    """Return what a figure owes to chance: its caption has the first word, then the chapter's own seed."""
    if EXACT in caption:
        return EXACT
    if recorded or re.search(r"\bseeds?\b", caption):
        return "seeds as its caption says" if re.search(r"\bseeds?\b", caption) else ""
    return f"seed {parameters['seed']}" if "seed" in parameters else ""


def _record(root: Path, folder: Path) -> RecordOrigin:
    run, place = read_run(folder), folder.relative_to(root / "results")
    sweep = place.parts[0]
    command = f"qkrepro sweep results/{sweep}.yaml"
    if not (root / "results" / f"{sweep}.yaml").is_file():
        command = "qkrepro train --set " + " --set ".join(f"{k}={v}" for k, v in run["configuration"].items())
    settings, corpus = run["configuration"], run["corpus"]
    return RecordOrigin(
        sweep=sweep,
        run="/".join(place.parts[1:]) or sweep,
        seed=settings["seed"],
        kappa=settings["kappa"],
        command=command,
        revision=run["environment"]["revision"],
        corpus=corpus["name"],
        digest=corpus["digest"],
    )


def _covers(read: str, record: RecordOrigin) -> bool:
    """Return whether what a notebook reads (a file, folder or pattern) holds the record, its sweep or a file of it."""
    sweep, run = f"results/{record.sweep}", f"results/{record.sweep}/{record.run}"
    return any(fnmatch(place, read.rstrip("/")) for place in ("results", sweep, run, f"{run}/run.json"))


def _count(origin: FigureOrigin, records: Sequence[RecordOrigin]) -> int:
    return sum(any(_covers(name, record) for name in origin.reads) for record in records)


def _reads(origin: FigureOrigin, records: Sequence[RecordOrigin]) -> str:
    count, names = _count(origin, records), ", ".join(f"`{name}`" for name in origin.reads)
    return names + (f" ({count} record{'s' * (count > 1)})" if count else "") or "no record"


def _cell_link(origin: FigureOrigin) -> str:
    place = f"../notebooks/{origin.chapter}.html#cell-{origin.cell}"
    return f'<a class="reference internal" href="{place}">cell {origin.cell}</a>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows]]
    return "\n".join(lines) + "\n"


def _short(revision: str) -> str:
    return revision[:7] + "+" * revision.endswith("+") if revision != "unknown" else revision
