"""What is installed is what is pinned, and the pins hold for everybody."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_installed_package_has_its_pinned_version() -> None:
    here = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate()]
    found = {pin: _installed(pin.name) for pin in here}
    wrong = [
        f"{pin} but {got}" for pin, got in found.items() if got and not pin.specifier.contains(got, prereleases=True)
    ]
    assert not wrong
    assert sum(got is not None for got in found.values()) > 100


def test_every_requirement_is_pinned_and_the_pin_satisfies_it() -> None:
    pins = {_canonical(pin.name): pin for pin in PINS}
    groups = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    for line in (line for group in groups.values() for line in group):
        wanted = Requirement(line)
        if wanted.name == "qkrepro":
            continue
        (exact,) = pins[_canonical(wanted.name)].specifier
        assert exact.operator == "=="
        assert wanted.specifier.contains(exact.version, prereleases=True), line


def test_pytorch_is_the_version_of_the_records() -> None:
    assert [str(pin.specifier) for pin in PINS if pin.name == "torch"] == ["==2.13.0"]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_no_package_is_pinned_twice_for_one_python(python: str) -> None:
    for platform, system in (("linux", "Linux"), ("darwin", "Darwin"), ("win32", "Windows")):
        where = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": platform}
        where |= {"platform_system": system, "platform_machine": "x86_64"}
        names = [_canonical(pin.name) for pin in PINS if pin.marker is None or pin.marker.evaluate(where)]
        assert len(names) == len(set(names))


def test_a_cpu_build_of_pytorch_has_no_cuda_packages_beside_it() -> None:
    import torch

    if torch.version.cuda is None:
        assert not [pin.name for pin in PINS if pin.name.startswith("nvidia-") and _installed(pin.name)]
    else:
        assert any(pin.name.startswith(("nvidia-", "cuda-")) for pin in PINS)


def test_binder_and_the_citation_name_the_same_versions() -> None:
    environment = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (torch_pin,) = [pin.specifier for pin in PINS if pin.name == "torch"]
    assert f"pytorch-cpu{str(torch_pin).replace('==', '=')}" in environment
    assert "-c constraints.txt" in (ROOT / "binder" / "postBuild").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == version("qkrepro")


def test_the_extras_named_by_the_makefile_and_the_readme_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = re.search(r"^EXTRAS = (\S+)$", makefile, re.MULTILINE)
    assert extras
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    assert f'".[{extras[1]}]"' in (ROOT / "README.md").read_text(encoding="utf-8")
