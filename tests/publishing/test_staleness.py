"""Digests change with what a notebook depends on, and with nothing else."""

import itertools
import sys
from pathlib import Path

import pytest

from qkrepro.errors import ArgumentError
from qkrepro.publishing.staleness import changed_inputs, input_digests

MODULES = {
    "__init__.py": '"""Package."""\n',
    "__init__.pyi": "from .middle import twice\n",
    "base.py": 'LIMIT = 3\n\ndef scale(x):\n    """Scale."""\n    return x * LIMIT\n\ndef alone(x):\n    return x\n',
    "middle.py": "from PACKAGE.base import scale as grow\n\ndef twice(x):\n    return grow(grow(x))\n",
    "lazy.py": "def late(x):\n    from PACKAGE.base import alone\n    return alone(x)\n\nclass Box:\n    side = 1\n",
    "other.py": "def one():\n    return 1\n",
    "room/__init__.py": '"""A room."""\n',
    "room/deep.py": "from PACKAGE.base import scale\n\ndef thrice(x):\n    return scale(x) + 2\n",
}
NOTEBOOKS = {
    "direct": ["from PACKAGE.base import scale\nscale(1)"],
    "through": ["%matplotlib inline\nfrom PACKAGE.middle import twice", "twice(2)"],
    "lazily": ["from PACKAGE import lazy\nlazy.late(1)"],
    "in a room": ["from PACKAGE.room import deep\ndeep.thrice(1)"],
    "from a room": ["from PACKAGE.room.deep import thrice\nthrice(1)"],
    "by the front door": ["import PACKAGE as qk\nqk.twice(1)"],
    "other": ["import PACKAGE.other"],
    "nothing": ["import math\nmath.pi"],
}
ROOM = {"in a room", "from a room"}
BASE = {"direct", "through", "lazily", "by the front door", *ROOM}
NUMBER = itertools.count()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout `tiny<n>` of a package of that name, which no other test has imported."""
    root = tmp_path / f"tiny{next(NUMBER)}"
    for name, text in MODULES.items():
        path = root / root.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("PACKAGE", root.name))
    (root / "constraints.txt").write_text("# header\ntorch==1\n")
    (root / "runs" / "first").mkdir(parents=True)
    (root / "runs" / "first" / "metrics.csv").write_text("1\n")
    monkeypatch.syspath_prepend(str(root))
    yield root
    sys.modules.pop(root.name, None)


def _all_digests(root: Path) -> dict[str, dict[str, str]]:
    cells = {name: [cell.replace("PACKAGE", root.name) for cell in cells] for name, cells in NOTEBOOKS.items()}
    return {name: input_digests(root, sources, {}, [], root.name) for name, sources in cells.items()}


def _stale_after(checkout: Path, path: str, old: str, new: str) -> set[str]:
    before = _all_digests(checkout)
    file = checkout / path.replace("PACKAGE", checkout.name)
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    after = _all_digests(checkout)
    return {name for name in NOTEBOOKS if changed_inputs(before[name], after[name])}


@pytest.mark.parametrize(
    ("path", "old", "new", "stale"),
    [
        ("PACKAGE/base.py", "return x * LIMIT", "return LIMIT * x", BASE),
        ("PACKAGE/base.py", "LIMIT = 3", "LIMIT = 4", BASE),
        ("PACKAGE/base.py", '"""Scale."""', '"""Scale\n    a number."""', set()),
        ("PACKAGE/middle.py", "grow(grow(x))", "grow(x)", {"through", "by the front door"}),
        ("PACKAGE/middle.py", "import scale as grow", "import alone as grow", {"through", "by the front door"}),
        ("PACKAGE/lazy.py", "side = 1", "side = 2", {"lazily"}),
        ("PACKAGE/other.py", "return 1", "return 2", {"other"}),
        ("PACKAGE/room/deep.py", "scale(x) +", "-scale(x) +", ROOM),
        ("PACKAGE/room/__init__.py", "A room", "A large room", set()),
        ("constraints.txt", "torch==1", "torch==2", set(NOTEBOOKS)),
        ("constraints.txt", "# header", "# another header", set()),
    ],
)
def test_a_change_makes_stale_what_depends_on_it_and_nothing_else(
    checkout: Path, path: str, old: str, new: str, stale: set[str]
) -> None:
    assert _stale_after(checkout, path, old, new) == stale


def test_cells_and_parameters_count(checkout: Path) -> None:
    def of(cell: str, parameters: dict[str, int]) -> dict[str, str]:
        return input_digests(checkout, [cell], parameters, [], checkout.name)

    first = of("x = 1", {"n": 1})
    assert changed_inputs(first, of("x = 1", {"n": 1})) == []
    assert changed_inputs(first, of("x = 2", {"n": 1})) == ["code"]
    assert changed_inputs(first, of("x = 1", {"n": 2})) == ["parameters"]


def test_records_count_by_content_as_files_folders_and_patterns(checkout: Path) -> None:
    def of(reads: str) -> dict[str, str]:
        return input_digests(checkout, ["1"], {}, [reads], checkout.name)

    names = ("runs/first/metrics.csv", "runs/first", "runs/*/metrics.csv")
    before = {reads: of(reads) for reads in names}
    (checkout / "runs" / "first" / "metrics.csv").write_text("2\n")
    assert {reads: changed_inputs(before[reads], of(reads)) for reads in names} == {reads: [reads] for reads in names}


def test_a_record_that_is_not_there_is_named(checkout: Path) -> None:
    with pytest.raises(ArgumentError, match=r"reads must be .*, got 'runs/none'"):
        input_digests(checkout, ["1"], {}, ["runs/none"], checkout.name)
