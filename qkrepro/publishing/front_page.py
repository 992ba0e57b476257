"""What the front page says of the book itself: its revision, the counts of verdicts, a map of the chapters."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import yaml

from qkrepro import __version__
from qkrepro.evidence.claims import Outcome
from qkrepro.publishing.notebooks import read_notebook
from qkrepro.publishing.revision import book_revision, last_change

OUTCOMES = get_args(Outcome)


def write_front_page(root: Path, work: Path, table: pd.DataFrame) -> None:
    """Write the generated parts of the front page into `work`, from the table that `verdicts` returns."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    toc = yaml.safe_load((work / "_toc.yml").read_text(encoding="utf-8"))
    parts = {
        "edition.md": edition_line(root, config["repository"].get("url") or ""),
        "answer.md": answer_line(table),
        "chapters.md": chapter_map(work, toc),
    }
    for name, text in parts.items():
        (work / "book" / "generated" / name).write_text(text, encoding="utf-8")


def edition_line(root: Path, url: str) -> str:
    """Return version, revision, date and where to report an error; url is empty while there is none."""
    revision = book_revision(root)
    report = f"[report an error]({url.rstrip('/')}/issues/new)"
    if not url:
        report = "found an error? Tell who gave you this copy, with the revision and the page"
    about = f"Version {__version__} · revision {revision} · last updated {last_change(root)}"
    return f":::{{container}} edition\n{about} · {report}\n:::\n"


def answer_line(table: pd.DataFrame) -> str:
    """Return how the claims of the paper, and those reported of it, came out, counted from the verdicts."""
    parts = []
    for provenance, words in (("paper", "of the abstract"), ("reported", "reported of the paper")):
        counts = table.loc[table["provenance"] == provenance, "outcome"].value_counts()
        outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if outcome in counts)
        parts.append(f"{int(counts.sum())} claims {words}: **{outcomes}**")
    return f"**We find.** {'; '.join(parts)}.\n"


def chapter_map(work: Path, toc: Mapping[str, Any]) -> str:
    """Return the parts of the table of contents as MyST, chapters that run with the question that each answers."""
    parts = []
    for part in toc["parts"]:
        pages = [chapter["file"] for chapter in part["chapters"]]
        links = [f"{{doc}}`../{page}`" for page in pages]
        if part.get("numbered"):
            rows = [f"| {link} | {_question(work, page)} |" for link, page in zip(links, pages, strict=True)]
            lines = ["| chapter | question |", "| --- | --- |", *rows]
        else:
            lines = [" · ".join(links)]
        parts.append(f"**{part['caption']}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _question(work: Path, page: str) -> str:
    """Return the first paragraph below title and answer box of a notebook, for a cell; "" for other pages."""
    if not (work / f"{page}.ipynb").is_file():
        return ""
    first = next(cell.source for cell in read_notebook(work / f"{page}.ipynb").cells if cell.cell_type == "markdown")
    text = re.split(r"^# .*$", first, maxsplit=1, flags=re.MULTILINE)[-1].strip()
    text = re.sub(r"^(:{3,}|`{3,})\{.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL).strip()
    sentence = " ".join(re.split(r"\n\s*\n", text)[0].split()).replace("|", "\\|")
    return re.sub(r"\{doc\}`(?=\w)", "{doc}`../notebooks/", sentence)
