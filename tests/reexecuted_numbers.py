"""After nbval ran every notebook: the numbers behind the figures agree with the committed ones, table by table.

`make notebooks` runs this after the notebooks; the folder is in QKREPRO_NUMBERS. The rules stand in `agreement`.
"""

import os
from pathlib import Path

import pytest
from agreement import numbers_differences, processor_of, tables_of

from qkrepro.training.records import processor

COMMITTED = Path(__file__).parent.parent / "notebooks" / "numbers"
MADE = Path(os.environ["QKREPRO_NUMBERS"])


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*.json")), ids=lambda path: path.stem)
def test_numbers_agree(path: Path) -> None:
    made = MADE / path.name
    assert made.is_file(), "the notebook saved no numbers"
    found = numbers_differences(path.stem, tables_of(made), tables_of(path))
    where = f"processor here: {processor()}; of the record: {processor_of(path)}"
    assert not found, "\n".join([f"{path.stem}: {len(found)} differences", *found[:20], where])
