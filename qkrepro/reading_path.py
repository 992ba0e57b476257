"""The ten-minute path of the front page: what to read in which order, with minutes counted from words and figures."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from qkrepro.edition import FIGURES_A_MINUTE, WORDS_A_MINUTE
from qkrepro.errors import SiteError
from qkrepro.notebooks import read_notebook


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
        "notebooks/08_both_at_once",
        "## Deeper stacks, other tokens",
        "## What it shows",
        "where the central figure ends, with more layers and other tokens: {numref}`fig-both-windows`",
    ),
    Stop("book/interactive", "", "**What is behind it.**", "move a slider and watch the curve: {ref}`turn-the-knobs`"),
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
