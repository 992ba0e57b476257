"""The table "neighbours at a glance": claims of other papers, where we tested them, and what the spectrum says."""

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pandas as pd
import yaml

from qkrepro.errors import ArgumentError
from qkrepro.evidence.claims import Claim
from qkrepro.files import write_atomically
from qkrepro.publishing.claims_pages import all_claims, claim_link, table_cell, verdict_badge, verdicts

PART = "Neighbours"  # caption of the part in _toc.yml
COLUMNS = ("chapter", "claim", "outcome", "in which setting of ours", "what the spectrum says")


def neighbour_chapters(root: Path) -> list[str]:
    """Return the names of the notebooks in the part "Neighbours" of `_toc.yml`, in its order; [] without the part."""
    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    parts = [part["chapters"] for part in contents.get("parts", []) if part.get("caption") == PART]
    places = [Path(entry["file"]) for chapters in parts for entry in chapters]
    return [place.name for place in places if place.parent.name == "notebooks"]


def neighbours_page(root: Path, table: pd.DataFrame) -> str:
    """Return the table, MyST Markdown: one row per claim; chapter, source and spectrum stand in a chapter's first row.

    table: as `verdicts` returns it. Each chapter has the constants SOURCE, an arXiv id, and SPECTRUM_SAYS, a sentence.
    """
    outcomes = table.set_index("claim")["outcome"].to_dict()
    rows: list[Sequence[str]] = [COLUMNS, ["---"] * len(COLUMNS)]
    for chapter in neighbour_chapters(root):
        module = import_module(f"qkrepro.chapters.{chapter}")
        head, says = f"{{doc}}`../notebooks/{chapter}`<br>{_source(module.SOURCE)}", module.SPECTRUM_SAYS
        for claim in (claim for claim in all_claims() if claim.chapter == chapter):
            rows.append([head, *_cells(claim, outcomes[claim.name]), says])
            head, says = "", ""
    lines = [f"| {' | '.join(map(table_cell, cells))} |" for cells in rows]
    return ":::{table}\n:class: neighbours\n\n" + "\n".join(lines) + "\n:::\n"


def write_neighbours(root: Path, folder: Path | None = None) -> Path:
    """Write `neighbours.md` to `book/generated`, or to `folder`, and return its path."""
    path = (folder or root / "book" / "generated") / "neighbours.md"
    write_atomically(path, neighbours_page(root, verdicts()).encode())
    return path


def _source(arxiv: str) -> str:
    if not re.fullmatch(r"\d{4}\.\d{5}", arxiv):
        raise ArgumentError(f"SOURCE must be an arXiv id such as 2405.18781, got {arxiv!r}")
    return f"[arXiv {arxiv}](https://arxiv.org/abs/{arxiv})"


def _cells(claim: Claim, outcome: str) -> list[str]:
    return [claim_link(claim), verdict_badge(outcome), claim.setting or "–"]
