"""What the front page says of the book itself: edition, counts of verdicts, map of the chapters with reading times."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from qkrepro import __version__
from qkrepro.errors import SiteError
from qkrepro.publishing.notebooks import read_notebook
from qkrepro.publishing.revision import book_revision, last_change

WORDS_A_MINUTE = 180  # technical prose
FIGURES_A_MINUTE = 1
OUTCOMES = ("reproduced", "partly", "not reproduced", "not run")


def write_front_page(root: Path, work: Path, table: pd.DataFrame) -> None:
    """Write the generated parts of the front page into `work`; table: the verdicts, as `verdicts` gives them."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    toc = yaml.safe_load((work / "_toc.yml").read_text(encoding="utf-8"))
    parts = {
        "edition.md": edition_line(root, config["repository"].get("url") or "", reading_minutes(work, toc)),
        "answer.md": answer_line(table),
        "chapters.md": chapter_map(work, toc),
    }
    for name, text in parts.items():
        (work / "book" / "generated" / name).write_text(text, encoding="utf-8")


def edition_line(root: Path, url: str, minutes: int) -> str:
    """Version, revision, date, time to read it all, where to report an error; url is empty while there is none."""
    revision = book_revision(root)
    report = f"[report an error]({url.rstrip('/')}/issues/new)"
    if not url:
        report = "found an error? Tell who gave you this copy, with the revision and the page"
    about = f"Version {__version__} · revision {revision} · last updated {last_change(root)}"
    return f":::{{container}} edition\n{about} · {_hours(minutes)} to read in all · {report}\n:::\n"


def answer_line(table: pd.DataFrame) -> str:
    """How the claims of the paper, and those reported of it, came out: counted from the verdicts."""
    parts = []
    for provenance, words in (("paper", "of the abstract"), ("reported", "reported of the paper")):
        counts = table.loc[table["provenance"] == provenance, "outcome"].value_counts()
        found = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if outcome in counts)
        parts.append(f"{int(counts.sum())} claims {words}: **{found}**")
    return f"**We find.** {'; '.join(parts)}.\n"


def chapter_map(work: Path, toc: Mapping[str, Any]) -> str:
    """The parts of the table of contents with reading times, MyST: a table of questions for chapters that run."""
    parts = []
    for part in toc["parts"]:
        pages = [chapter["file"] for chapter in part["chapters"]]
        rows = [(f"{{doc}}`../{page}`", _question(work, page), page_minutes(work, page)) for page in pages]
        if part.get("numbered"):
            lines = [f"| {link} | {question} | {minutes} |" for link, question, minutes in rows]
            lines = ["| chapter | question | minutes |", "| --- | --- | ---: |", *lines]
        else:
            lines = [" · ".join(f"{link} ({minutes} min)" for link, _, minutes in rows)]
        parts.append(f"**{part['caption']}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def reading_minutes(work: Path, toc: Mapping[str, Any]) -> int:
    """Minutes to read all parts of a table of contents but the last, the reference."""
    pages = [toc["root"], *(chapter["file"] for part in toc["parts"][:-1] for chapter in part["chapters"])]
    return sum(page_minutes(work, page) for page in pages)


def page_minutes(work: Path, page: str) -> int:
    """Minutes to read the prose of a page and to look at its figures, at least 1; `page` has no suffix."""
    notebook = work / f"{page}.ipynb"
    if not notebook.is_file():
        text = (work / f"{page}.md").read_text(encoding="utf-8")
        return max(1, round(len(text.split()) / WORDS_A_MINUTE + text.count("```{figure}") / FIGURES_A_MINUTE))
    cells = read_notebook(notebook).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    captions = [cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "") for cell in cells]
    words += sum(len(caption.split()) for caption in captions)
    return max(1, round(words / WORDS_A_MINUTE + sum(map(bool, captions)) / FIGURES_A_MINUTE))


def _question(work: Path, page: str) -> str:
    """The first paragraph below the title and the answer box of a notebook, for a cell; empty for other pages."""
    if not (work / f"{page}.ipynb").is_file():
        return ""
    first = next(cell.source for cell in read_notebook(work / f"{page}.ipynb").cells if cell.cell_type == "markdown")
    text = re.split(r"^# .*$", first, maxsplit=1, flags=re.MULTILINE)[-1].strip()
    text = re.sub(r"^(:{3,}|`{3,})\{.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL).strip()
    sentence = " ".join(re.split(r"\n\s*\n", text)[0].split()).replace("|", "\\|")
    return re.sub(r"\{doc\}`(?=\w)", "{doc}`../notebooks/", sentence)


def _hours(minutes: int) -> str:
    return f"about {minutes} minutes" if minutes < 100 else f"about {minutes / 60:.0f} hours"


@dataclass(frozen=True)
class Stop:
    """A part of a page: how its first line and the line behind it begin ("": the top), and how the path names it."""

    page: str
    start: str
    end: str
    words: str


TEN_MINUTES = (
    Stop("book/intro", "", "(where-to-start)=", "this page, down to here"),
    Stop(
        "notebooks/both_at_once",
        "## Deeper stacks, other tokens",
        "## What it shows",
        "where the central figure ends, with more layers and other tokens: {numref}`fig-both-windows`",
    ),
    Stop("book/plane", "", "## How to read it", "drag a point and watch a head: {ref}`the-plane`"),
    Stop("book/claims", "## How a verdict", "## The claims", "who decides: {ref}`how-a-verdict-comes-about`"),
)


def reading_path(work: Path, stops: tuple[Stop, ...] = TEN_MINUTES) -> str:
    """The path as a numbered list below the minutes of all, rounded up, MyST; `work` is a staged copy of the sources.

    Raises SiteError when a part is not there.
    """
    minutes = [part_minutes(work, stop) for stop in stops]
    rounded = [max(1, round(each)) for each in minutes]
    lines = [
        f"{number}. {stop.words} ({each} min)"
        for number, (stop, each) in enumerate(zip(stops, rounded, strict=True), 1)
    ]
    total = max(math.ceil(sum(minutes)), sum(rounded))
    return f"**With {total} minutes**, in this order:\n\n" + "\n".join(lines) + "\n"


def part_minutes(work: Path, stop: Stop) -> float:
    """Minutes to read a part of a page and to look at its figures; generated text in it is counted too.

    Raises SiteError when the part is not there.
    """
    part = re.search(rf"(?ms)^{re.escape(stop.start)}.*?(?=^{re.escape(stop.end)})", _text(work, stop.page))
    if not part:
        raise SiteError(f"the path of the front page has {stop}; allowed: lines that are in {stop.page}")
    figures = part[0].count("```{figure}") + part[0].count("```{raw} html")
    return len(part[0].split()) / WORDS_A_MINUTE + figures / FIGURES_A_MINUTE


def _text(work: Path, page: str) -> str:
    """What a reader sees of a page as Markdown, with what it includes; of a notebook the prose and the captions."""
    source = work / f"{page}.md"
    if source.is_file():
        text = source.read_text(encoding="utf-8")
        return re.sub(r"(?m)^```\{include\} (\S+)\n```$", lambda match: _included(source.parent / match[1]), text)
    parts = []
    for cell in read_notebook(work / f"{page}.ipynb").cells:
        caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption")
        parts.append(
            f"```{{figure}}\n{caption}\n```" if caption else cell.source if cell.cell_type == "markdown" else ""
        )
    return "\n\n".join(parts)


def _included(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
