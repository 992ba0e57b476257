"""How numbers and differences read in sentences: with a sign, with an interval, as passes over the text."""

from collections.abc import Sequence

from qkrepro.theory.statistics import t_interval
from qkrepro.training.tables import NOT_RUN


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, "+1.30" or "−0.53"; what rounds to zero has none."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def passes(epochs: float, most: float | None = None) -> str:
    """A number of passes over the text, or a range of them: "0.25 passes", "1 pass", "3.75 to 4 passes"."""
    least, last = (round(float(value), 2) for value in (epochs, epochs if most is None else most))
    return f"{last:g} pass{'es' * (last != 1)}" if least == last else f"{least:g} to {last:g} passes"


def change(differences: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """A mean difference over paired seeds with its 95% interval and what can be told from it.

    "+0.53 (−0.66 to +1.73, 3 seeds): no difference can be told"; "not run" without a pair; one pair has no interval.
    """
    if not len(differences):
        return NOT_RUN
    if len(differences) == 1:
        return f"{signed(differences[0], digits)}{unit} (one seed): nothing can be told"
    gap = t_interval(differences)
    low, high = signed(gap.low, digits), signed(gap.high, digits)
    told = "higher" if gap.low > 0 else "lower" if gap.high < 0 else "no difference can be told"
    return f"{signed(gap.estimate, digits)}{unit} ({low} to {high}, {len(differences)} seeds): {told}"


def plain(value: float) -> str:
    """A number as short as it can be, with a minus sign: "−0.5", "4"."""
    return f"{value:g}".replace("-", "−")
