"""What a claim is: where it comes from, how it is judged, what would refute it. Each chapter defines its own.

Source: book, "Claims and verdicts".
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd

from qkrepro.errors import ArgumentError, check_choice

Tables = Mapping[str, pd.DataFrame]
Provenance = Literal["paper", "reported", "derived", "ours", "literature"]
Outcome = Literal["reproduced", "partly", "not reproduced", "inconclusive", "not a test", "not run"]
HOLDS = {
    "reproduced": "holds",
    "partly": "holds in part",
    "not reproduced": "does not hold",
}  # of a claim with a setting


class Verdict(NamedTuple):
    """What the data say of a claim, the numbers in one sentence, and in how many cases of how many the claim holds.

    holds, of: None for a rule that judges one number and counts no cases.
    """

    outcome: Outcome
    because: str
    holds: int | None = None
    of: int | None = None


@dataclass(frozen=True)
class Threshold:
    """The number that a rule compares with, and where the page shows what the verdict would be at others.

    name: what is bounded, with its unit. value: where the verdict is given. tried: ascending values around it.
    judge: the rule as a function of tables and threshold; at `value` it is the claim's own rule.
    """

    name: str
    value: float
    tried: tuple[float, ...]
    judge: Callable[[Tables, float], Verdict]


@dataclass(frozen=True)
class Claim:
    """One claim: its words, the conditions under which it is tested, its rule in words and as a function.

    chapter: name of the chapter that saves the tables. statement: the claim in one sentence. conditions: of the test
    (sign of the mean, temperature, law of tokens, layers), unless the statement names them. rule, refuted_by: what the
    function does, in words. tables: the names of the tables that `rule` reads. quote: words of the abstract (arXiv
    2402.02098), the only text of the paper we hold. figure: name of the chapter's figure that shows it. threshold: None
    where no single number decides. setting: where a claim of another paper was tested, such as "a grid world of 5 × 5
    cells"; its outcome then reads "holds in" that setting, because a small setting of ours reproduces nothing.
    """

    name: str
    chapter: str
    provenance: Provenance
    statement: str
    rule: str
    refuted_by: str
    tables: tuple[str, ...]
    judge: Callable[[Tables], Verdict]
    conditions: str = ""
    quote: str | None = None
    figure: str | None = None
    threshold: Threshold | None = None
    setting: str | None = None


def claim_in_full(claim: Claim) -> str:
    """Return the statement of a claim, and after it the conditions of the test."""
    return f"{claim.statement} Tested here: {claim.conditions}." if claim.conditions else claim.statement


def outcome_word(claim: Claim, outcome: Outcome) -> str:
    """Return the outcome as pages name it: "holds" in place of "reproduced" for a claim with a setting of its own."""
    return HOLDS.get(outcome, outcome) if claim.setting else outcome


def outcome_in_setting(claim: Claim, outcome: Outcome) -> str:
    """Return the outcome with its setting, such as "holds in a grid world of 5 × 5 cells"; just the outcome without."""
    return f"{outcome_word(claim, outcome)}{f' in {claim.setting}' if claim.setting else ''}"


def claim_named(claims: Iterable[Claim], name: str) -> Claim:
    """Return the claim of that name; ArgumentError lists the names when there is none."""
    by_name = {claim.name: claim for claim in claims}
    check_choice("claim", name, list(by_name))
    return by_name[name]


def judge(claim: Claim, tables: Tables) -> Verdict:
    """Return the verdict on a chapter's tables. Raises ArgumentError when a table or a column is missing."""
    missing = [table for table in claim.tables if table not in tables]
    if missing:
        raise ArgumentError(f"tables lack {', '.join(missing)}; claim {claim.name} reads {', '.join(claim.tables)}")
    try:
        return claim.judge(tables)
    except KeyError as error:
        raise ArgumentError(f"tables of claim {claim.name} lack {error}; its rule names what it reads") from error


def sensitivity(claim: Claim, tables: Tables) -> pd.DataFrame:
    """Return the verdict at every threshold that is tried: threshold, outcome, holds, of; no rows without one."""
    threshold = claim.threshold
    verdicts = [(value, threshold.judge(tables, value)) for value in threshold.tried] if threshold else []
    rows = [{"threshold": value, **verdict._asdict()} for value, verdict in verdicts]
    return pd.DataFrame(rows, columns=["threshold", "outcome", "holds", "of"])
