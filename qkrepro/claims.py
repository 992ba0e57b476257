"""The claims the book checks: provenance, rule, what would refute it (claims.yaml), and the verdict from the data."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml

from qkrepro import training_rules, verdict_rules
from qkrepro.errors import ArgumentError, check_choice
from qkrepro.figure_numbers import (
    COMMITTED_PROFILE,
    book_root,
    changed_parameters,
    load_numbers,
    numbers_folder,
    stored,
)
from qkrepro.verdict_rules import Tables, Verdict

STORED = "verdicts.csv"
Provenance = Literal["paper", "reported", "derived", "ours"]


@dataclass(frozen=True)
class Claim:
    """One claim: where it comes from, how it is judged, and on which chapter's numbers.

    `quote` holds words of the abstract (arXiv 2402.02098), the only text of the paper we hold; None where we hold none.
    """

    name: str
    chapter: str
    provenance: Provenance
    statement: str
    rule: str
    refuted_by: str
    tables: tuple[str, ...]
    judge: Callable[[Tables], Verdict]
    quote: str | None = None
    figure: str | None = None  # name of the chapter's figure that shows it


def _read_claims() -> tuple[Claim, ...]:
    texts = yaml.safe_load((resources.files("qkrepro") / "claims.yaml").read_text(encoding="utf-8"))
    rules = {**vars(verdict_rules), **vars(training_rules)}
    return tuple(
        Claim(name=name, **{**fields, "tables": tuple(fields["tables"]), "judge": rules[fields["judge"]]})
        for name, fields in texts.items()
    )


CLAIMS: tuple[Claim, ...] = _read_claims()


def claim(name: str) -> Claim:
    """The claim of that name; ArgumentError lists the names when there is none."""
    check_choice("claim", name, [entry.name for entry in CLAIMS])
    return next(entry for entry in CLAIMS if entry.name == name)


class ShownVerdict:
    """A verdict as a notebook shows it: Markdown in a page, one line of text elsewhere."""

    def __init__(
        self, entry: Claim, verdict: Verdict | None, profile: str, changed: Mapping[str, tuple[object, object]]
    ) -> None:
        """Keep the claim and its verdict; `verdict` is None at a profile that judges nothing.

        changed: parameters that are not those of the book, with the book's value and the one now.
        """
        self.entry, self.verdict, self.profile, self.changed = entry, verdict, profile, changed

    def __repr__(self) -> str:
        """Name of the claim, verdict and its reason."""
        if self.verdict is None:
            return f"{self.entry.name}: no verdict at profile {self.profile}; verdicts rest on {COMMITTED_PROFILE}"
        return f"{self.entry.name}: {self.verdict.outcome} ({self.verdict.because}){self._mark()}"

    def _repr_markdown_(self) -> str:
        entry = self.entry
        head = f"**Claim** ({entry.provenance}): {entry.statement}\n\n"
        head += f"**Rule.** {entry.rule} Refuted by: {entry.refuted_by}.\n\n"
        if self.verdict is None:
            return f"{head}{self!r}."
        because = self.verdict.because
        title = "Verdict of changed parameters" if self.changed else "Verdict"
        return f"{head}**{title}: {self.verdict.outcome}.** {because[:1].upper()}{because[1:]}{self._mark()}."

    def _mark(self) -> str:
        told = ", ".join(f"{name} is {now!r} instead of {before!r}" for name, (before, now) in self.changed.items())
        return f"; of changed parameters: {told}. The book's own verdict is on its claims page" if told else ""


def show_verdict(name: str, tables: Tables, profile: str) -> ShownVerdict:
    """Judge the claim on these tables, for display at the end of a chapter; only the committed profile judges.

    Raises ArgumentError for an unknown claim or a table the rule needs and did not get.
    """
    entry = claim(name)
    verdict = judge(entry, stored(tables)) if profile == COMMITTED_PROFILE else None
    return ShownVerdict(entry, verdict, profile, changed_parameters(entry.chapter))


def judge(entry: Claim, tables: Tables) -> Verdict:
    """The verdict of a claim on its chapter's tables, by its rule; ArgumentError when a table or column is missing."""
    missing = [table for table in entry.tables if table not in tables]
    if missing:
        raise ArgumentError(f"tables lack {', '.join(missing)}; claim {entry.name} reads {', '.join(entry.tables)}")
    try:
        return entry.judge(tables)
    except KeyError as error:
        raise ArgumentError(
            f"tables of claim {entry.name} lack {error}; see its rule in qkrepro.verdict_rules"
        ) from error


def verdicts(folder: Path | None = None, chapters: Sequence[str] | None = None) -> pd.DataFrame:
    """Claims (of these chapters; default all) with their verdicts from the committed numbers, in order of claims.yaml.

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
