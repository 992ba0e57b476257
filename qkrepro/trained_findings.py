"""What trained models say of the theory and of plateaus: sentences that follow from the tables, whatever they hold."""

from collections.abc import Sequence

import pandas as pd

from qkrepro.plateaus import REFERENCE, STARTS, gaps_to_reference
from qkrepro.run_comparisons import mean_interval
from qkrepro.run_findings import change
from qkrepro.run_tables import NOT_RUN
from qkrepro.training_rules import FEWEST_SEEDS
from qkrepro.wording import signed

LOW = ("collapsed", "concentrated")  # the starts whose entropy is low at update 0
EVEN = 0.02  # how far from the middle a centre may lie and still lean neither way
START_NAMES = {
    "xavier": "Xavier",
    "collapsed": "dispersed",
    "uniform": "near zero",
    "concentrated": "concentrated",
}


def mean_text(values: Sequence[float], digits: int = 2) -> str:
    """A mean over seeds with its 95% t interval: "0.29 (0.26 to 0.33, 3 seeds)"; "not run" without one."""
    data = [float(value) for value in values if value == value]
    if not data:
        return NOT_RUN
    found = mean_interval(data)
    if len(data) == 1:
        return f"{_number(found.estimate, digits)} (one seed)"
    interval = f"{_number(found.low, digits)} to {_number(found.high, digits)}"
    return f"{_number(found.estimate, digits)} ({interval}, {len(data)} seeds)"


def by_seed(table: pd.DataFrame, column: str) -> list[float]:
    """One value a seed: the mean of its runs, which share their beginning and so are not independent."""
    return [float(value) for value in table.groupby("seed")[column].mean()]


def leaning(centre: float) -> str:
    """Where the mass of a profile with this centre lies: "late", "early", or "even" within 0.02 of the middle."""
    return "even" if abs(centre - 0.5) <= EVEN else "late" if centre > 0.5 else "early"


def direction_text(agreement: pd.DataFrame) -> str:
    """Which way prediction and measurement lean, from `profile_agreement` rows of one moment; and the mirror image."""
    if agreement.empty:
        return NOT_RUN
    predicted, measured = (float(agreement[f"centre_{name}"].mean()) for name in ("predicted", "nonsaturated"))
    sides = leaning(predicted), leaning(measured)
    told = f"the prediction is {sides[0]} (centre {predicted:.2f}), the measurement {sides[1]} ({measured:.2f})"
    if set(sides) != {"early", "late"}:
        return f"{told}; they lean {'alike' if sides[0] == sides[1] else 'differently'}"
    means = agreement[["total_variation", "mirrored_variation"]].mean()
    nearer = "nearer" if means["mirrored_variation"] < means["total_variation"] else "no nearer"
    return (
        f"{told}: it looks the wrong way. Read from the end it is {nearer}, {means['mirrored_variation']:.2f} against "
        f"{means['total_variation']:.2f}"
    )


def broken_text(distances: pd.DataFrame, limit: float) -> str:
    """Which assumption fails: from law, total_variation (rows of runs), with `limit` as the distance that counts.

    The drawn walk keeps the walk and drops the normal law; "normal" keeps the normal law and drops the walk.
    """
    if distances.empty:
        return NOT_RUN
    mean = distances.groupby("law")["total_variation"].mean()
    walk, normal = mean["drawn walk"] > limit, mean["normal"] > limit
    if walk and not normal:
        return "it is the walk that fails, not the normal law of the logits"
    if normal and not walk:
        return "it is the normal law of the logits that fails, not the walk"
    return (
        "both the walk and the normal law of the logits fail" if walk else "neither the walk nor the normal law fails"
    )


def gap_text(gaps: pd.DataFrame, column: str = "difference") -> str:
    """Differences to the Xavier start, one clause a start: columns start, `column`, one row a seed."""
    names = [name for name in STARTS[1:] if name in set(gaps["start"])]
    told = [
        f"{START_NAMES[name]} {change(gaps.loc[gaps['start'] == name, column].tolist(), digits=3)}" for name in names
    ]
    return "; ".join(told) or NOT_RUN


def entropy_text(starts: pd.DataFrame) -> str:
    """Attention entropy of each start from the first to the last evaluation, nats, means over seeds."""
    told = []
    for name in (each for each in STARTS if each in set(starts["start"])):
        first, last = (
            float(starts.loc[starts["start"] == name, end].mean()) for end in ("first_entropy", "last_entropy")
        )
        told.append(f"{START_NAMES[name]} {first:.2f} to {last:.2f}")
    return "; ".join(told) or NOT_RUN


def disease_text(starts: pd.DataFrame) -> str:
    """Whether low entropy alone makes slow: which of the two other judged starts have less, and which learn slower.

    starts: start, seed, early_entropy, early_loss, of seeds that have them all; "not run" below three seeds. Less and
    slower: the paired 95% t interval of the difference lies below, above 0.
    """
    if starts["seed"].nunique() < FEWEST_SEEDS or not {REFERENCE, *LOW} <= set(starts["start"]):
        return NOT_RUN
    gaps = {name: gaps_to_reference(starts, name, ["seed"]) for name in ("early_entropy", "early_loss")}
    means = {
        name: {start: mean_interval(part["difference"].tolist()) for start, part in table.groupby("start")}
        for name, table in gaps.items()
    }
    low = [start for start in LOW if means["early_entropy"][start].high < 0]
    slow = [start for start in LOW if means["early_loss"][start].low > 0]
    told = f"less entropy than Xavier over the first half: {_list(low)}; slower than Xavier: {_list(slow)}"
    return (
        f"{told}. {'Low entropy and slow learning go together' if low == slow else 'Low entropy does not decide'} here"
    )


def plateau_text(plateaus: pd.DataFrame) -> str:
    """How many runs have a plateau, by start, and the longest: table of `plateau_table`."""
    if plateaus.empty:
        return NOT_RUN
    have = plateaus["length"] > 0
    if not have.any():
        return f"none of {len(plateaus)} runs has a plateau"
    counts = {name: have[plateaus["start"] == name] for name in STARTS}
    by_start = [f"{START_NAMES[name]} {each.sum()} of {len(each)}" for name, each in counts.items() if len(each)]
    longest: pd.Series = plateaus.sort_values("length", kind="stable").iloc[-1]
    return (
        f"{int(have.sum())} of {len(plateaus)} runs have a plateau ({', '.join(by_start)}); the longest lasts "
        f"{longest['length']:.0f} updates, from update {longest['begin']:.0f} at a loss of {longest['loss']:.2f} nats "
        f"({START_NAMES[str(longest['start'])]}, seed {longest['seed']})"
    )


def _number(value: float, digits: int) -> str:
    return signed(value, digits).lstrip("+")


def _list(names: Sequence[str]) -> str:
    return " and ".join(START_NAMES[name] for name in names) or "neither"
