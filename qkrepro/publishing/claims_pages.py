"""The claims of all chapters: their verdicts from the committed numbers, and the pages that show them."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from qkrepro.chapters import (
    both_at_once,
    deeper_and_wider,
    eigenspectrum,
    entropy_collapse,
    localization_plane,
    locater,
    plateaus,
    rank_collapse,
    real_weights,
    signal_propagation,
    softmax_linearisation,
    theory_in_trained_models,
    true_softmax,
)
from qkrepro.errors import ArgumentError, check_choice
from qkrepro.evidence.claims import Claim, judge
from qkrepro.evidence.numbers import book_root, load_numbers, numbers_folder
from qkrepro.evidence.verdicts import Verdict

STORED = "verdicts.csv"
CHAPTERS = (
    softmax_linearisation,
    eigenspectrum,
    signal_propagation,
    localization_plane,
    true_softmax,
    rank_collapse,
    entropy_collapse,
    both_at_once,
    real_weights,
    locater,
    theory_in_trained_models,
    plateaus,
    deeper_and_wider,
)
CLAIMS: tuple[Claim, ...] = tuple(entry for chapter in CHAPTERS for entry in chapter.CLAIMS.values())


def claim(name: str) -> Claim:
    """The claim of that name; ArgumentError lists the names when there is none."""
    check_choice("claim", name, [entry.name for entry in CLAIMS])
    return next(entry for entry in CLAIMS if entry.name == name)


def verdicts(folder: Path | None = None, chapters: Sequence[str] | None = None) -> pd.DataFrame:
    """Claims (of these chapters; default all) with their verdicts from the committed numbers, in the order of CLAIMS.

    A chapter without saved numbers gives "not run" and what completes it.
    """
    rows = []
    for entry in (each for each in CLAIMS if chapters is None or each.chapter in chapters):
        verdict = _stored_verdict(entry, folder or numbers_folder())
        rows.append(
            {
                "claim": entry.name,
                "chapter": entry.chapter,
                "provenance": entry.provenance,
                "statement": entry.statement,
                "outcome": verdict.outcome,
                "because": verdict.because,
            }
        )
    return pd.DataFrame(rows)


def _stored_verdict(entry: Claim, folder: Path) -> Verdict:
    if not (folder / f"{entry.chapter}.json").is_file():
        return Verdict("not run", _how_to_complete(entry.chapter))
    return judge(entry, load_numbers(entry.chapter, folder))


def _how_to_complete(chapter: str) -> str:
    if (book_root() / "notebooks" / f"{chapter}.ipynb").is_file():
        return f"complete it with `qkrepro figures {chapter}`"
    return "its chapter is not written yet"


def claims_page(table: pd.DataFrame, chapters: Sequence[str]) -> str:
    """The generated part of the claims page, MyST Markdown: one section a claim, in the order of CLAIMS.

    `chapters` are the chapters that exist as notebooks; only those are linked.
    """
    parts = []
    for entry, (_, row) in zip(CLAIMS, table.iterrows(), strict=True):
        written = entry.chapter in chapters
        lines = {
            "numbers": row["because"],
            "provenance": entry.provenance,
            "rule": entry.rule,
            "refuted by": entry.refuted_by,
            "chapter": f"{{doc}}`../notebooks/{entry.chapter}`" if written else "not written yet",
            "figure": f"{{numref}}`{entry.figure}`" if written and entry.figure else "none yet",
            "recompute": f"`qkrepro figures {entry.chapter} --force`" if written else "nothing to run yet",
        }
        quote = f'> "{entry.quote}" (abstract, {{cite}}`bao2024self`)\n\n' if entry.quote else ""
        rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in lines.items())
        head = f"| verdict | **{row['outcome']}** |\n| --- | --- |\n"
        parts.append(f"(claim-{entry.name})=\n### {entry.statement}\n\n{quote}{head}{rows}\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table, where a bar would end the cell."""
    return text.replace("|", "\\|")


def verdict_summary(table: pd.DataFrame) -> str:
    """The front page's table, MyST Markdown: the claims of the paper and those reported of it, with their verdicts."""
    shown = table[table["provenance"].isin(["paper", "reported"])]
    lines = [f"| {row['statement']} | {row['provenance']} | **{row['outcome']}** |" for _, row in shown.iterrows()]
    return "\n".join(["| claim | provenance | verdict |", "| --- | --- | --- |", *lines, ""])


def changed_verdicts(table: pd.DataFrame, folder: Path | None = None) -> list[str]:
    """Names of the claims whose stored verdict (`book/generated/verdicts.csv`) no longer follows from the data."""
    path = (folder or book_root() / "book" / "generated") / STORED
    if not path.is_file():
        raise ArgumentError(f"{path} is missing; write it with `qkrepro claims --write`")
    stored = pd.read_csv(path, dtype=str).set_index("claim")
    current = table.set_index("claim")[["outcome", "because"]]
    names = current.index.union(stored.index, sort=False)
    same = current.reindex(names).fillna("").eq(stored.reindex(names).fillna("")).all(axis=1)
    return [str(name) for name in names[~same]]


def write_pages(folder: Path | None = None) -> list[Path]:
    """Write `claims.md`, `verdicts.md` and the stored `verdicts.csv` to `book/generated`, or to `folder`."""
    root = book_root()
    target = folder or root / "book" / "generated"
    target.mkdir(parents=True, exist_ok=True)
    chapters = [path.stem for path in (root / "notebooks").glob("*.ipynb")]
    table = verdicts()
    stored = table[["claim", "outcome", "because"]].to_csv(index=False, lineterminator="\n")
    pages = {"claims.md": claims_page(table, chapters), "verdicts.md": verdict_summary(table), STORED: stored}
    for name, text in pages.items():
        temporary = target / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target / name)
    return [target / name for name in pages]
