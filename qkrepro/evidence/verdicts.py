"""What verdicts are made of: outcomes, thresholds and how cases add up.

Each rule stands in the module of its chapter; the book's page "Claims and verdicts" says which were written before
their data. A rule that finds too little data answers "not run". Tables and columns are those that `save_numbers` keeps
for the chapter; each docstring names them. Thresholds are choices of ours.
"""

from collections.abc import Mapping

import pandas as pd

from qkrepro.evidence.claims import Outcome, Verdict
from qkrepro.theory.statistics import Interval

HALF = 0.5  # what "prevented" means: at least half of log T for entropy, of the input's own residual for rank
LOCALIZED = 0.3  # localization index from which a profile counts as localized: 30% of the sequence is shut out
ROUNDING = 1e-6  # what the last bits of a processor cannot reach, and no claim is about
NAMED = 6  # settings that a verdict lists by name, at most
SAME_PROFILE = 0.2  # total variation up to which two profiles over the sequence count as the same


def share_verdict(holds: list[bool], because: str) -> Verdict:
    """Return reproduced when all cases hold, not reproduced when none does, partly in between, not run without any."""
    if not holds:
        return Verdict("not run", "no data yet")
    outcome: Outcome = "reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"
    return Verdict(outcome, because, sum(holds), len(holds))


def settings_verdict(settings: Mapping[str, bool | None], remark: str = "") -> Verdict:
    """Count the settings, by name, in which a claim holds (True), fails (False) or is left open by the data (None).

    Reproduced when it holds in all, partly when it holds in some and fails in others, not reproduced when it fails in
    some and holds in none, inconclusive when it fails in none and the data leave some open, not run without settings.
    remark: what a reader should know beside the counts.
    """
    holds, fails = (sum(status is wanted for status in settings.values()) for wanted in (True, False))
    count = len(settings)
    if not count:
        return Verdict("not run", "no data yet")
    outcome: Outcome = "reproduced" if holds == count else "inconclusive"
    if fails:
        outcome = "partly" if holds else "not reproduced"
    because = (
        f"holds in {holds} of {count} settings, fails in {fails}, left open by the data in {count - holds - fails}"
    )
    for wanted, word in ((False, "fails"), (True, "holds")):
        some = [name for name, status in settings.items() if status is wanted]
        if 0 < len(some) <= NAMED and len(some) < count:
            because += f"; it {word} in: {', '.join(f'({name})' for name in some)}"
            break
    return Verdict(outcome, because + (f"; {remark}" if remark else ""), holds, count)


def above(interval: Interval, bar: float) -> bool | None:
    """Return True when the whole interval lies above the bar, False when all of it lies below, None when it is open."""
    return True if interval.low > bar else False if interval.high < bar else None


def both(*statuses: bool | None) -> bool | None:
    """Return True when all are, False when one is, None when the data leave it open."""
    return False if False in statuses else None if None in statuses else True


def either(*statuses: bool | None) -> bool | None:
    """Return True when one is, False when all are, None when the data leave it open."""
    return True if True in statuses else None if None in statuses else False


def correlation_verdict(table: pd.DataFrame, sign: int = 1) -> Verdict:
    """Judge whether correlations have the sign that a claim names, each by its whole interval.

    table: quantity, correlation, low, high, as `theory.statistics.correlations` returns it; one row per setting.
    """
    rows = table.to_dict("records")
    ends = {str(row["quantity"]): sorted((sign * row["low"], sign * row["high"])) for row in rows}
    return settings_verdict({name: above(Interval(low, low, high), 0) for name, (low, high) in ends.items()})


def universal_verdict(holds: list[bool | None], because: str) -> Verdict:
    """Judge a claim that one case refutes: not reproduced when a case fails, inconclusive when one is open (None)."""
    if not holds:
        return Verdict("not run", "no data yet")
    outcome: Outcome = "not reproduced" if False in holds else "inconclusive" if None in holds else "reproduced"
    return Verdict(outcome, because, holds.count(True), len(holds))


def within(low: float, high: float, least: float, most: float) -> bool | None:
    """Return whether [low, high] lies inside [least, most] (True), wholly outside (False) or across an end (None)."""
    if least <= low and high <= most:
        return True
    return None if low <= most and high >= least else False
