"""A Binder session without a container: the packages that `binder/` names and nothing else, and its post-build step.

The packages are those that are installed here, linked: conda-forge's PyTorch and pip's download are not tried.
"""

import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

from checkout_copy import Copy
from packaging.requirements import Requirement

GIVEN = ("pip", "setuptools", "torch")  # by environment.yml: Python, pip and PyTorch, which brings setuptools


class Image:
    """An environment with the packages of a Binder session."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "environment" / "bin" / "python"

    def variables(self) -> dict[str, str]:
        """Variables of a session: its Python comes first, the package comes from where post-build installed it."""
        left = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "QKREPRO_NUMBERS")}
        return left | {"PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"}

    def post_build(self, copy: Copy) -> subprocess.CompletedProcess[str]:
        """Run binder/postBuild in a copy as it stands, offline: pip finds all it needs, or fails."""
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        command = [str(copy.root / "binder" / "postBuild")]
        variables = self.variables() | offline
        return subprocess.run(command, cwd=copy.root, env=variables, capture_output=True, text=True, check=False)


def make_image(folder: Path, copy: Copy) -> Image:
    """An environment that sees PyTorch and what post-build asks for, and no other package that is installed here."""
    image, packages = Image(folder), folder / "packages"
    venv.create(folder / "environment", symlinks=True)
    packages.mkdir()
    for name in _names(copy):
        for top in {
            file.parts[0] for file in distribution(name).files or () if file.parts[0] not in ("..", "__pycache__")
        }:
            place = packages / top
            if not place.exists():
                place.symlink_to(Path(str(distribution(name).locate_file(top))))
    (site,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (site / "linked.pth").write_text(f"{packages}\n")
    for shared in ("share", "etc"):  # JupyterLab's pages and settings
        (folder / "environment" / shared).symlink_to(Path(sys.prefix) / shared)
    return image


def _names(copy: Copy) -> set[str]:
    """Names of the distributions of a session: what is given, what post-build asks for, and all that these need."""
    project = tomllib.loads((copy.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = re.search(r'-e "\.\[([\w,]+)\]"', (copy.root / "binder" / "postBuild").read_text(encoding="utf-8"))
    assert asked, "binder/postBuild installs no extras"
    todo = [(Requirement(name), "") for name in GIVEN]
    todo += [(Requirement(line), "") for line in project["dependencies"]]
    extras = asked[1].split(",")
    while extras:
        for requirement in map(Requirement, project["optional-dependencies"][extras.pop()]):
            if requirement.name == "qkrepro":
                extras += requirement.extras
            else:
                todo.append((requirement, ""))
    return set(_needed(todo))


def _needed(todo: list[tuple[Requirement, str]]) -> Iterator[str]:
    seen = set()
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            if (requirement.name.lower(), wanted) not in seen:
                seen.add((requirement.name.lower(), wanted))
                lines: Iterable[str] = distribution(requirement.name).requires or ()
                todo += [(Requirement(line), wanted) for line in lines]
                yield requirement.name
