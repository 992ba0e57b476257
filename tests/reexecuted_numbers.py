"""After nbval ran every notebook: the numbers behind the figures agree with the committed ones.

`make test` runs this after the notebooks, in the same session; the folder is in QKREPRO_NUMBERS. Tolerance: 0.1% of a
value, or one part in a million of 1 near zero: another processor's last digits pass, another result does not.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

COMMITTED = Path(__file__).parent.parent / "notebooks" / "numbers"
MADE = Path(os.environ["QKREPRO_NUMBERS"])
RELATIVE, ABSOLUTE = 1e-3, 1e-6


def _differences(name: str, new: dict[str, list[Any]], old: dict[str, list[Any]]) -> list[str]:
    assert new.keys() == old.keys()
    found = []
    for column in old:
        assert len(new[column]) == len(old[column]), f"{name}.{column}"
        for row, (a, b) in enumerate(zip(new[column], old[column], strict=True)):
            numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
            if a != (pytest.approx(b, rel=RELATIVE, abs=ABSOLUTE) if numbers else b):
                found.append(f"{name}.{column}[{row}]: {a} instead of {b}")
    return found


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*.json")), ids=lambda path: path.stem)
def test_numbers_agree(path: Path) -> None:
    made = MADE / path.name
    assert made.is_file(), "the notebook saved no numbers"
    new, old = (json.loads(file.read_text(encoding="utf-8"))["tables"] for file in (made, path))
    assert new.keys() == old.keys()
    assert [line for name in old for line in _differences(name, new[name], old[name])] == []
