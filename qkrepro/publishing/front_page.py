"""The generated parts of the front page: verdicts with small pictures, the edition, a map of the chapters."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import yaml
from nbformat import NotebookNode
from PIL import Image

from qkrepro import __version__
from qkrepro.errors import NotebookError
from qkrepro.evidence.claims import Outcome
from qkrepro.publishing.claims_pages import all_claims, cases_bar, claim_link, verdict_badge
from qkrepro.publishing.head_drawing import head_drawing
from qkrepro.publishing.notebooks import png_outputs, read_notebook
from qkrepro.publishing.revision import book_revision, last_change

OUTCOMES = get_args(Outcome)
OF_THE_PAPER = {"paper": "of the abstract", "reported": "reported of the paper"}  # provenance, and what it is called
MAIN_FIGURE = "main-figure"  # tag of the cell whose picture stands for its chapter
THUMBNAIL = (420, 200)  # pixels at most, twice what is shown


def write_front_page(root: Path, work: Path, table: pd.DataFrame) -> None:
    """Write the generated parts of the front page into `work`, from the table that `verdicts` returns."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    toc = yaml.safe_load((work / "_toc.yml").read_text(encoding="utf-8"))
    parts = {
        "edition.md": edition_line(root, config["repository"].get("url") or ""),
        "strip.md": verdict_strip(table),
        "chapters.md": chapter_map(work, toc),
        "head.md": head_drawing(),
    }
    for name, text in parts.items():
        (work / "book" / "generated" / name).write_text(text, encoding="utf-8")
    for chapter in table.loc[table["provenance"].isin(OF_THE_PAPER), "chapter"].unique():
        if (notebook := work / "notebooks" / f"{chapter}.ipynb").is_file():
            picture = thumbnail(main_figure(read_notebook(notebook)))
            (work / "book" / "generated" / f"thumbnail-{chapter}.png").write_bytes(picture)


def main_figure(notebook: NotebookNode) -> bytes:
    """Return the stored picture, PNG, of the cell tagged `main-figure`; without one, the first picture.

    Raises NotebookError when the notebook has no picture.
    """
    if pictures := png_outputs(notebook, MAIN_FIGURE) or png_outputs(notebook):
        return pictures[0]
    raise NotebookError(f"no cell has a picture; one must be tagged `{MAIN_FIGURE}`")


def thumbnail(picture: bytes) -> bytes:
    """Return a PNG scaled down to a few kilobytes, in at most 64 colours."""
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    image.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(64, method=Image.Quantize.FASTOCTREE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def verdict_strip(table: pd.DataFrame) -> str:
    """Return the claims of the paper with verdict, k of n and a picture, MyST Markdown; those reported of it folded.

    table: as `verdicts` returns it, with a row for each claim.
    """
    claims = {claim.name: claim for claim in all_claims()}
    parts = [answer_line(table)]
    for provenance, words in OF_THE_PAPER.items():
        items = []
        for row in table[table["provenance"] == provenance].to_dict("records"):
            claim = claim_link(claims[row["claim"]])
            chapter = f"{{doc}}`../notebooks/{row['chapter']}`"
            answer = f"{verdict_badge(row['outcome'])} {cases_bar(row)} {chapter}"
            picture = f"![](generated/thumbnail-{row['chapter']}.png)"
            items.append(f'- {picture} <span class="strip-claim">{claim}</span> <span>{answer}</span>')
        strip = ":::{container} verdict-strip\n" + "\n".join(items) + "\n:::\n"
        folded = f"::::{{dropdown}} The {len(items)} claims {words}\n{strip}::::\n"
        parts.append(strip if provenance == "paper" else folded)
    return "\n".join(parts)


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
    for provenance, words in OF_THE_PAPER.items():
        counts = table.loc[table["provenance"] == provenance, "outcome"].value_counts()
        outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if outcome in counts)
        parts.append(f"{int(counts.sum())} claims {words}: **{outcomes}**")
    return f"{'; '.join(parts)}.\n"


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
    """Return the first paragraph below title and answer box of a page, for a cell."""
    if (work / f"{page}.ipynb").is_file():
        cells = read_notebook(work / f"{page}.ipynb").cells
        first = next(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        first = (work / f"{page}.md").read_text(encoding="utf-8")
    text = re.split(r"^# .*$", first, maxsplit=1, flags=re.MULTILINE)[-1].strip()
    text = re.sub(r"^(:{3,}|`{3,})\{.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL).strip()
    sentence = " ".join(re.split(r"\n\s*\n", text)[0].split()).replace("|", "\\|")
    return re.sub(r"\{doc\}`(?=\w)", "{doc}`../notebooks/", sentence)
