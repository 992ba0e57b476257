"""`import qkrepro as qk`: the names it gives, what it costs, what a type checker sees, and that the examples run."""

import json
import re
import subprocess
import sys
from importlib import import_module
from inspect import getdoc
from pathlib import Path

import pytest
from mypy import api as mypy

import qkrepro as qk

ROOT = Path(__file__).parents[1]
NAMES = {
    "theory.spectrum": ("qk_eigenvalues", "qk_matrix", "qk_moments", "random_spectrum_matrix"),
    "theory.xavier": ("xavier_law",),
    "theory.tokens": ("random_walk",),
    "theory.attention": ("softmax_attention", "piecewise_linear_attention", "attention_entropy"),
    "theory.propagation": ("signal_propagation", "localization"),
    "theory.entropy": ("entropy_lower_bound",),
    "theory.rank": ("rank_residual",),
    "theory.depth": ("Stack", "depth_experiment"),
    "models.checkpoint": ("qk_weights", "qk_heads"),
    "models.spectrum_report": ("qk_table",),
    "training.locater": ("LocAteR",),
    "training.configuration": ("RunConfiguration",),
    "training.loop": ("train",),
}
IMPORT = """
import json, sys, time
start, before = time.process_time(), set(sys.modules)
import qkrepro as qk
seconds, names = time.process_time() - start, dir(qk)
print(json.dumps({"seconds": seconds, "names": names, "modules": sorted(set(sys.modules) - before)}))
"""
CALLS = """
import torch
import qkrepro as qk
reveal_type(qk.qk_eigenvalues(torch.eye(2), torch.eye(2)))
reveal_type(qk.Stack().layers)
reveal_type(qk.__version__)
qk.qk_matrix("no tensor", torch.eye(2))
qk.no_such_name
"""
EXAMPLES = ["README.md", *(f"book/theory{part}.md" for part in ("", "_propagation", "_collapse", "_locater"))]


def test_importing_imports_no_room_and_no_library_and_takes_no_time() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert not {"torch", "numpy", "pandas", "scipy"} & set(answer["modules"])
    assert [name for name in answer["modules"] if name.startswith("qkrepro")] == ["qkrepro"]
    assert answer["seconds"] < 0.1  # of the processor, so that other work beside it does not count
    assert set(answer["names"]) == {"__version__"}.union(*NAMES.values())


def test_every_name_is_the_documented_object_of_its_room() -> None:
    assert set(qk.__all__) == {"__version__"}.union(*NAMES.values())
    for module, names in NAMES.items():
        for name in names:
            value = getattr(qk, name)
            assert value is getattr(import_module(f"qkrepro.{module}"), name)
            assert value.__module__ == f"qkrepro.{module}"
            assert len(getdoc(value) or "") > 40, name


def test_another_name_is_refused_by_name() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        qk.no_such_name  # noqa: B018


def test_a_type_checker_sees_the_types_of_the_rooms(tmp_path: Path) -> None:
    assert (ROOT / "qkrepro" / "py.typed").is_file()
    (tmp_path / "calls.py").write_text(CALLS, encoding="utf-8")
    told, errors, _ = mypy.run(["--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "calls.py")])
    assert errors == ""
    assert re.findall(r'Revealed type is "(?:builtins\.)?([^"]*)"', told) == ["torch._tensor.Tensor", "int", "str"]
    assert len(re.findall(r": error: ", told)) == 2
    assert 'incompatible type "str"; expected "Tensor"' in told
    assert 'Module has no attribute "no_such_name"' in told


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_examples_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    assert "import qkrepro as qk" in blocks[0]
    assert any("assert" in block for block in blocks)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
