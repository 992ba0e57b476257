"""When two executions of a notebook count as the same: rules for its text, and for each table of its numbers.

The same machine gives the same bytes (`make repeat`). Another processor rounds the last bits of a sum otherwise, so
here a number in a printed text may differ by one unit of its last digit, and a saved table follows its rule in RULES;
a table without one follows EXACT. What was seen between processors stands in `book/generated/processors.json`.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Columns = dict[str, list[Any]]
Tables = dict[str, Columns]
_NUMBER = re.compile(r"[-−+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Rule:
    """How far a number may be from the committed one, and what a table promises whatever its numbers are.

    relative, absolute: either is enough. falls: a column and what it falls by: in each group of the rows that agree in
    `within`, its last value lies below its first.
    """

    relative: float
    absolute: float
    why: str
    falls: str | None = None
    within: tuple[str, ...] = ()


EXACT = Rule(1e-6, 1e-9, "float64, seeded draws, or read from records: processors differ by 2e-9 at most")
WEIGHTS = Rule(1e-4, 1e-6, "the weights of a trained model run in float32: processors differ by 2e-5 at most")
RANKS = Rule(2e-3, 2e-3, "ranks of what float32 gives: two values that are almost equal may change places")
SINGLE = Rule(1e-2, 1e-3, "small trainings in float32: processors differ by 1e-3 at most")
TRAINING = Rule(1e-3, 1e-5, "a small training in float64 amplifies last bits: processors differ by 1e-7 at most")


def _training(falls: str, *within: str) -> Rule:
    return Rule(TRAINING.relative, TRAINING.absolute, TRAINING.why, falls, within)


RULES: dict[str, dict[str, Rule]] = {
    "real_weights": {"heads": WEIGHTS, "layers": WEIGHTS, "correlations": WEIGHTS},
    "heads_in_the_wild": {"heads": WEIGHTS},
    "parallel_context": {"encodings": WEIGHTS, "heads": WEIGHTS, "correlation": RANKS},
    "sparse_mask": {"damage": WEIGHTS, "correlation": RANKS},
    "waiver_tokens": {"values": RANKS, "moved": WEIGHTS, "correlation": RANKS, "own": TRAINING},
    "catch_tag_release": {"outliers": WEIGHTS},
    "grounded_questions": {"results": SINGLE, "spectra": SINGLE},
    "locater": {"live": _training("estimate", "kappa")},
    "spectrum_in_training": {"live": TRAINING},
    "theory_in_trained_models": {"live_profiles": TRAINING, "live_distances": TRAINING},
    "plateaus": {"live_starts": TRAINING},
    "deeper_and_wider": {"live": TRAINING, "live_differences": TRAINING},
    "bring_your_own_corpus": {
        "valid_perplexity": _training("estimate", "kappa"),
        "valid_entropy": TRAINING,
        "trace": TRAINING,
        "frobenius": TRAINING,
        "ends": TRAINING,
    },
}


def rule_for(chapter: str, table: str) -> Rule:
    """The rule of a table."""
    return RULES.get(chapter, {}).get(table, EXACT)


def table_differences(name: str, new: Columns, old: Columns, rule: Rule) -> Iterator[str]:
    """What of a table is not as committed, a line each: columns, rows, values beyond the rule, a loss that rises."""
    if list(new) != list(old):
        yield f"{name} has columns {list(new)} instead of {list(old)}"
        return
    for column in old:
        if len(new[column]) != len(old[column]):
            yield f"{name}.{column} has {len(new[column])} rows instead of {len(old[column])}"
            continue
        for row, (now, before) in enumerate(zip(new[column], old[column], strict=True)):
            if not _agrees(now, before, rule):
                tolerance = f"{rule.relative:g} of it, or {rule.absolute:g}"
                yield f"{name}.{column}[{row}] is {now!r} instead of {before!r}; tolerance {tolerance} ({rule.why})"
    if rule.falls and rule.falls in new:
        yield from _rises(name, new, rule.falls, rule.within)


def _rises(name: str, table: Columns, column: str, within: tuple[str, ...]) -> Iterator[str]:
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row, value in enumerate(table[column]):
        groups.setdefault(tuple(table[key][row] for key in within), []).append(value)
    for key, values in groups.items():
        if not values[-1] < values[0]:
            yield f"{name}.{column} of {within} = {key} does not fall: {values[0]!r} at first, {values[-1]!r} at last"


def _agrees(now: Any, before: Any, rule: Rule) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (now, before))
    if numbers and isinstance(before, float):
        return math.isclose(now, before, rel_tol=rule.relative, abs_tol=rule.absolute)
    return bool(now == before and type(now) is type(before))


def numbers_differences(chapter: str, new: Tables, old: Tables) -> list[str]:
    """What of a chapter's tables is not as committed."""
    if new.keys() != old.keys():
        return [f"{chapter} saved {sorted(new)} instead of {sorted(old)}"]
    return [line for name in old for line in table_differences(name, new[name], old[name], rule_for(chapter, name))]


def text_difference(new: str, old: str) -> str | None:
    """The first place where two printed texts part by more than a unit of a number's last digit; None: nowhere.

    Whole numbers are counts and must be equal. So must everything between the numbers, but for runs of spaces, since a
    column of a table is as wide as its widest number.
    """
    if _blank(_NUMBER.sub("#", new)) != _blank(_NUMBER.sub("#", old)):
        return f"the text {_blank(new)!r} instead of {_blank(old)!r}"
    for now, before in zip(_NUMBER.findall(new), _NUMBER.findall(old), strict=True):
        if now != before and not _last_digit(now, before):
            unit = _unit(before)
            return f"{now} instead of {before}; tolerance {f'{unit:g}' if unit else 'none, a whole number'}"
    return None


def _last_digit(now: str, before: str) -> bool:
    unit = max(_unit(now), _unit(before))
    return unit > 0 and abs(_value(now) - _value(before)) <= 1.000001 * unit


def _unit(number: str) -> float:
    """One in the last digit of a number as it is written; 0 for a whole number."""
    mantissa, _, exponent = number.partition("e")
    digits = len(mantissa.partition(".")[2])
    return 0.0 if "." not in mantissa and not exponent else 10.0 ** (int(exponent or 0) - digits)


def _value(number: str) -> float:
    return float(number.replace("−", "-").replace(",", "").rstrip("."))


def _blank(text: str) -> str:
    return re.sub(r"[ \t]+", " ", text).strip()


def tables_of(path: Path) -> Tables:
    """The tables of a file of numbers."""
    tables: Tables = json.loads(path.read_text(encoding="utf-8"))["tables"]
    return tables


def processor_of(path: Path) -> str:
    """The processor that a file of numbers was made on."""
    return str(json.loads(path.read_text(encoding="utf-8")).get("processor", "not known"))
