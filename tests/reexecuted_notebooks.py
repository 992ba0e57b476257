"""After nbval ran every notebook: its numbers agree with the committed ones, and it stayed within its budget.

`make notebooks` runs this after the notebooks; the folder is in QKREPRO_NUMBERS. The rules of agreement stand in
`agreement`; what each kernel used was kept by `agreeing_outputs`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from agreeing_outputs import COSTS
from agreement import numbers_differences, processor_of, tables_of

from qkrepro.training.records import processor

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
MADE = Path(os.environ["QKREPRO_NUMBERS"])
NUMBERS = sorted((NOTEBOOKS / "numbers").glob("*.json"))
CHAPTERS = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
CPU_SECONDS, PEAK_MB = 15, 1500  # of a kernel on a machine whose clock below shows 5 seconds
CLOCK_SECONDS = 5.0
CLOCK = """
import time
import torch, seaborn, scipy.stats, myst_nb  # half of it, as a kernel starts
weights = product = torch.rand(768, 768) / 384
for _ in range(260):
    product = weights @ product
for _ in range(6):
    torch.linalg.eigvals(torch.rand(220, 220).double())
print(time.process_time())
"""
assert NUMBERS
assert CHAPTERS


@pytest.fixture(scope="module")
def seconds_allowed() -> float:
    """The budget of a notebook here: a slower or busier machine, as two clocks at a time show, has more."""
    clocks = [subprocess.Popen([sys.executable, "-c", CLOCK], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    seconds = [float(running.communicate()[0]) for running in clocks]
    return CPU_SECONDS * max(1, *(second / CLOCK_SECONDS for second in seconds))


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: path.stem)
def test_numbers_agree(path: Path) -> None:
    made = MADE / path.name
    assert made.is_file(), "the notebook saved no numbers"
    differences = numbers_differences(path.stem, tables_of(made), tables_of(path))
    where = f"processor here: {processor()}; of the record: {processor_of(path)}"
    assert not differences, "\n".join([f"{path.stem}: {len(differences)} differences", *differences[:20], where])


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_processor_time_and_memory_stay_within_the_budget(chapter: str, seconds_allowed: float) -> None:
    cost = json.loads((MADE / COSTS / f"{chapter}.json").read_text(encoding="utf-8"))
    assert cost["cpu_s"] < seconds_allowed
    assert cost["peak_mb"] < PEAK_MB
