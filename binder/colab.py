"""Install the book beside what a Colab session has; the first cell of a chapter runs this there, from any folder.

What Colab has stays, because its kernel has loaded NumPy and another one would need a restart, and its PyTorch is
gigabytes: the pins of `constraints.txt` hold for what is missing there, and for what is older than the package needs.
"""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "plots,minilm,hub"
BESIDES = "myst-nb"  # `glue`; its site is not built there


def pins_that_hold(pins: Iterable[str], needed: Iterable[str], there: Mapping[str, str]) -> list[str]:
    """The pins of packages that are missing, or older than needed.

    pins: lines NAME==VERSION, markers allowed. needed: requirements of the package. there: versions by canonical name.
    """
    too_old = {
        canonicalize_name(each.name)
        for each in map(Requirement, needed)
        if not each.specifier.contains(there.get(canonicalize_name(each.name), "0"), prereleases=True)
    }
    return [pin for pin in pins if (name := Requirement(pin).name) not in there or name in too_old]


def main() -> None:
    """Install the package from its clone, editable, with the extras that the chapters import."""
    there = {canonicalize_name(str(each.name)): each.version for each in distributions()}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = pins_that_hold((line for line in lines if line[:1] not in ("", "#")), project["dependencies"], there)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "pins.txt"
        file.write_text("\n".join(pins), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(file)]
        subprocess.run([*pip, "-e", f"{ROOT}[{EXTRAS}]", BESIDES], check=True)


if __name__ == "__main__":
    main()
