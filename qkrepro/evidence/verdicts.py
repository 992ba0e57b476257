"""What verdicts are made of: outcomes, thresholds and how cases add up.

Each rule was written before its data, and stands in the module of its chapter. A rule that finds too little data
answers "not run". Tables and columns are those that `save_numbers` keeps for the chapter; each docstring names them.
Thresholds are choices of ours.
"""

from collections.abc import Mapping

from qkrepro.evidence.claims import Outcome, Verdict

HALF = 0.5  # what "prevented" means: at least half of log T for entropy, of the input's own residual for rank
LOCALIZED = 0.3  # localization index from which a profile counts as localized: 30% of the sequence is shut out
ROUNDING = 1e-6  # what the last bits of a processor cannot reach, and no claim is about
SAME_PROFILE = 0.2  # total variation up to which two profiles over the sequence count as the same


def share_verdict(holds: list[bool], because: str) -> Verdict:
    """Reproduced when it holds in every case, not reproduced when in none, partly in between, not run without cases."""
    if not holds:
        return Verdict("not run", "no data yet")
    outcome: Outcome = "reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"
    return Verdict(outcome, because, sum(holds), len(holds))


def settings_verdict(holds: Mapping[str, bool]) -> Verdict:
    """As `share_verdict`, over settings by name: those in which it does not hold are named."""
    failing = "; ".join(name for name, good in holds.items() if not good)
    because = f"holds in {sum(holds.values())} of {len(holds)} settings" + (f"; not in: {failing}" if failing else "")
    return share_verdict(list(holds.values()), because)


def universal_verdict(holds: list[bool | None], because: str) -> Verdict:
    """Of a claim that one case refutes: not reproduced when a case fails, inconclusive when one is open (None)."""
    if not holds:
        return Verdict("not run", "no data yet")
    outcome: Outcome = "not reproduced" if False in holds else "inconclusive" if None in holds else "reproduced"
    return Verdict(outcome, because, holds.count(True), len(holds))


def within(low: float, high: float, least: float, most: float) -> bool | None:
    """Whether an interval lies inside of [least, most] (True), wholly outside (False) or across an end (None)."""
    if least <= low and high <= most:
        return True
    return None if low <= most and high >= least else False
