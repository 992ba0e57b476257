"""A claim: its provenance, its rule, what would refute it (claims.yaml), and the verdict from the data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import yaml

from qkrepro.errors import ArgumentError, check_choice
from qkrepro.evidence.numbers import COMMITTED_PROFILE, changed_parameters, stored
from qkrepro.evidence.verdicts import Tables, Verdict

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


def show_verdict(entry: Claim, tables: Tables, profile: str) -> ShownVerdict:
    """Judge the claim on these tables, for display at the end of a chapter; only the committed profile judges.

    Raises ArgumentError for a table that the rule needs and did not get.
    """
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
            f"tables of claim {entry.name} lack {error}; see its rule in {entry.judge.__module__}"
        ) from error


def claims_judged_by(*rules: Callable[[Tables], Verdict]) -> dict[str, Claim]:
    """Return the claims that these rules judge, by name, in the order of claims.yaml.

    Raises ArgumentError for a rule that judges no claim.
    """
    texts = yaml.safe_load((resources.files("qkrepro.evidence") / "claims.yaml").read_text(encoding="utf-8"))
    by_name = {rule.__name__: rule for rule in rules}
    for name in by_name:
        check_choice("rule", name, [fields["judge"] for fields in texts.values()])
    return {
        name: Claim(name=name, **{**fields, "tables": tuple(fields["tables"]), "judge": by_name[fields["judge"]]})
        for name, fields in texts.items()
        if fields["judge"] in by_name
    }
