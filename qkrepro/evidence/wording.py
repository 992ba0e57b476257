"""How numbers read in sentences: with a sign, and as passes over the text."""


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign, "+1.30" or "−0.53"; what rounds to zero has none."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def passes(epochs: float, most: float | None = None) -> str:
    """Return a number of passes over the text, or a range of them: "0.25 passes", "1 pass", "3.75 to 4 passes"."""
    least, last = (round(float(value), 2) for value in (epochs, epochs if most is None else most))
    return f"{last:g} pass{'es' * (last != 1)}" if least == last else f"{least:g} to {last:g} passes"


def plain(value: float) -> str:
    """Return a number as short as it can be, with a minus sign: "−0.5", "4"."""
    return f"{value:g}".replace("-", "−")
