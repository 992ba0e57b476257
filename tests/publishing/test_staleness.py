"""Digests change with what a notebook depends on, and with nothing else."""

from pathlib import Path

import pytest

from qkrepro.errors import ArgumentError
from qkrepro.publishing.staleness import changed_inputs, input_digests

MODULES = {
    "__init__.py": '"""Package."""\n',
    "base.py": 'LIMIT = 3\n\ndef scale(x):\n    """Scale."""\n    return x * LIMIT\n\ndef alone(x):\n    return x\n',
    "middle.py": "from qkrepro.base import scale as grow\n\ndef twice(x):\n    return grow(grow(x))\n\n"
    "def other():\n    return 0\n",
    "lazy.py": "def late(x):\n    from qkrepro.base import alone\n    return alone(x)\n\nclass Box:\n    side = 1\n",
    "side.py": "REGISTRY = {}\nprint('loaded')\n\ndef look():\n    return open('table.yaml')\n",
    "table.yaml": "a: 1\n",
    "room/__init__.py": '"""A room."""\n',
    "room/deep.py": "from qkrepro.base import scale\n\ndef thrice(x):\n    return scale(x) + open('words.txt')\n",
    "room/words.txt": "one\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "qkrepro").mkdir()
    for name, text in MODULES.items():
        (tmp_path / "qkrepro" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "qkrepro" / name).write_text(text.replace("'", '"'))
    (tmp_path / "constraints.txt").write_text("# header\ntorch==1\n")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "metrics.csv").write_text("1\n")
    return tmp_path


NOTEBOOKS = {
    "direct": ["from qkrepro.base import scale\nscale(1)"],
    "through": ["%matplotlib inline\nfrom qkrepro.middle import twice", "twice(2)"],
    "lazily": ["from qkrepro import lazy\nlazy.late(1)"],
    "in a room": ["from qkrepro.room import deep\ndeep.thrice(1)"],
    "from a room": ["from qkrepro.room.deep import thrice\nthrice(1)"],
    "nothing": ["import math\nmath.pi"],
    "data": ["import qkrepro.side"],
}
ROOM = {"in a room", "from a room"}


def _stale_after(checkout: Path, path: str, old: str, new: str) -> set[str]:
    def all_digests() -> dict[str, dict[str, str]]:
        return {name: input_digests(checkout, cells, {}, []) for name, cells in NOTEBOOKS.items()}

    before = all_digests()
    text = (checkout / path).read_text()
    assert old in text
    (checkout / path).write_text(text.replace(old, new))
    after = all_digests()
    return {name for name in NOTEBOOKS if changed_inputs(before[name], after[name])}


@pytest.mark.parametrize(
    ("path", "old", "new", "stale"),
    [
        ("qkrepro/base.py", "return x * LIMIT", "return LIMIT * x", {"direct", "through", *ROOM}),
        ("qkrepro/base.py", "LIMIT = 3", "LIMIT = 4", {"direct", "through", *ROOM}),
        ("qkrepro/base.py", "    return x\n", "    return -x\n", {"lazily"}),
        ("qkrepro/base.py", '"""Scale."""', '"""Scale a number."""', set()),
        ("qkrepro/middle.py", "return 0", "return 1", set()),
        ("qkrepro/middle.py", "grow(grow(x))", "grow(x)", {"through"}),
        ("qkrepro/lazy.py", "side = 1", "side = 2", {"lazily"}),
        ("qkrepro/side.py", 'print("loaded")', "REGISTRY[1] = 2", {"data"}),
        ("qkrepro/table.yaml", "a: 1", "a: 2", {"data"}),
        ("qkrepro/room/deep.py", "scale(x) +", "-scale(x) +", ROOM),
        ("qkrepro/room/words.txt", "one", "two", ROOM),
        ("qkrepro/room/__init__.py", "A room", "A large room", set()),
        ("constraints.txt", "torch==1", "torch==2", set(NOTEBOOKS)),
        ("constraints.txt", "# header", "# another header", set()),
    ],
)
def test_a_change_makes_stale_what_depends_on_it_and_nothing_else(
    checkout: Path, path: str, old: str, new: str, stale: set[str]
) -> None:
    assert _stale_after(checkout, path, old, new) == stale


def test_a_changed_import_inside_the_package_is_followed(checkout: Path) -> None:
    stale = _stale_after(checkout, "qkrepro/middle.py", "import scale as grow", "import alone as grow")
    assert stale == {"through"}


def test_cells_and_parameters_count(checkout: Path) -> None:
    first = input_digests(checkout, ["x = 1"], {"n": 1}, [])
    assert changed_inputs(first, input_digests(checkout, ["x = 1"], {"n": 1}, [])) == []
    assert changed_inputs(first, input_digests(checkout, ["x = 2"], {"n": 1}, [])) == ["code"]
    assert changed_inputs(first, input_digests(checkout, ["x = 1"], {"n": 2}, [])) == ["parameters"]


def test_records_count_by_content_as_files_folders_and_patterns(checkout: Path) -> None:
    def of(reads: str) -> dict[str, str]:
        return input_digests(checkout, ["1"], {}, [reads])

    names = ("runs/first/metrics.csv", "runs/first", "runs/*/metrics.csv")
    before = {reads: of(reads) for reads in names}
    (checkout / "runs" / "first" / "metrics.csv").write_text("2\n")
    assert {reads: changed_inputs(before[reads], of(reads)) for reads in names} == {reads: [reads] for reads in names}


def test_a_record_that_is_not_there_is_named(checkout: Path) -> None:
    with pytest.raises(ArgumentError, match=r"reads is 'runs/none'; allowed: "):
        input_digests(checkout, ["1"], {}, ["runs/none"])
