"""Notebooks run whole or not at all, in this Python, and leave no trace of the run but their outputs."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from qkrepro.cli.app import main
from qkrepro.errors import ArgumentError, NotebookError
from qkrepro.publishing.execution import find_chapters, run_figures
from qkrepro.publishing.notebooks import clean, default_parameters, read_notebook, with_parameters, write_notebook
from qkrepro.publishing.repetition import KEPT, repeat_figures, repetition_page

PARAMETERS = 'profile = "quick"\nsamples = 10  # draws\nscale = (1.0, 2.5)  # units\nname = "ä"'
SAVES = (
    "import json, os, pathlib\n"
    "folder = pathlib.Path(os.environ['QKREPRO_NUMBERS'])\n"
    "(folder / 'one.json').write_text(json.dumps({'tables': samples}))\n"
)


def _write(folder: Path, name: str, cells: list[str], parameters: str = PARAMETERS) -> Path:
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), first, *map(new_code_cell, cells)])
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    (tmp_path / "notebooks" / "numbers").mkdir()
    (tmp_path / "qkrepro").mkdir()
    for name in ("_toc.yml", "constraints.txt", "qkrepro/__init__.py"):
        (tmp_path / name).touch()
    _write(tmp_path / "notebooks", "one", ["import sys\nprint(samples, name)\nsys.executable", SAVES])
    (tmp_path / "notebooks" / "profiles" / "smoke.yaml").write_text("one: {samples: 3}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _outputs(path: Path) -> str:
    return json.dumps([cell.get("outputs") for cell in read_notebook(path).cells], ensure_ascii=False)


@pytest.mark.slow
def test_a_notebook_runs_in_this_python_once_and_gives_the_same_bytes_again(book: Path) -> None:
    path = book / "notebooks" / "one.ipynb"
    assert run_figures(log=lambda _: None) == ["one"]
    made = path.read_bytes()
    assert "10 ä" in _outputs(path)
    assert json.dumps(sys.executable)[1:-1] in _outputs(path)
    kept = json.loads((book / "notebooks" / "numbers" / "one.json").read_text())
    assert kept.pop("processor")
    assert kept == {
        "tables": 10,
        "parameters": {"profile": "quick", "samples": 10, "scale": [1.0, 2.5], "name": "ä"},
    }
    assert b"papermill" not in made
    assert [cell.execution_count for cell in read_notebook(path).cells[1:]] == [1, 2, 3]
    said: list[str] = []
    assert run_figures(["one"], log=said.append) == []
    assert "--force" in said[-1]
    assert run_figures(force=True, log=lambda _: None) == ["one"]
    assert path.read_bytes() == made
    costs = json.loads((book / "_build" / "quick" / "costs.json").read_text())
    assert costs["one"]["cpu_s"] > 0
    assert 10 < costs["one"]["peak_mb"] < 1500


@pytest.mark.slow
def test_a_notebook_repeats_and_one_that_prints_the_clock_does_not(book: Path) -> None:
    (book / KEPT).parent.mkdir(parents=True)
    lines: list[str] = []
    run_figures(log=lines.append)
    assert repeat_figures(log=lines.append) == []
    assert lines[-1].endswith(", the same")
    _write(book / "notebooks", "one", [SAVES, "import time\nprint(time.time_ns())"])
    assert repeat_figures(log=lines.append) == []
    assert "not repeated, its outputs are stale" in lines[-1]
    run_figures(log=lines.append)
    assert repeat_figures(log=lines.append) == ["one"]
    assert lines[-1].endswith(", NOT the same")
    assert "| **different** |" in repetition_page(book)


@pytest.mark.slow
def test_another_profile_is_kept_apart_and_shows_its_own_parameters(book: Path) -> None:
    before = (book / "notebooks" / "one.ipynb").read_bytes()
    run_figures(profile="smoke", log=lambda _: None)
    made = book / "_build" / "smoke" / "notebooks" / "one.ipynb"
    assert "3 ä" in _outputs(made)
    assert default_parameters(read_notebook(made))["profile"] == "smoke"
    assert json.loads((book / "_build" / "smoke" / "numbers" / "one.json").read_text())["parameters"]["samples"] == 3
    assert (book / "notebooks" / "one.ipynb").read_bytes() == before
    assert not list((book / "notebooks" / "numbers").iterdir())


@pytest.mark.slow
def test_a_failing_notebook_fails_by_name_and_changes_nothing_while_others_run(book: Path) -> None:
    path = _write(book / "notebooks", "bad", [SAVES.replace("one", "bad"), "raise RuntimeError('no\\nway')"])
    before, said = path.read_bytes(), []
    with pytest.raises(NotebookError, match=r"1 of 2 notebooks failed.*: bad, cell 3: RuntimeError: no way"):
        run_figures(log=said.append)
    assert path.read_bytes() == before
    assert not (book / "notebooks" / "numbers" / "bad.json").exists()
    assert (book / "notebooks" / "numbers" / "one.json").exists()
    assert (book / "_build" / "failed" / "bad.ipynb").is_file()
    assert any(line.startswith("[2/2] one: ") and line.endswith(" left") for line in said)


def test_check_names_what_is_stale_and_runs_nothing(book: Path) -> None:
    said: list[str] = []
    assert run_figures(check=True, log=said.append) == ["one"]
    assert said == ["profile quick: 0 of 1 notebooks up to date, 1 to run", "[1/1] one: no outputs yet"]
    assert not (book / "_build").exists()


def test_unknown_names_are_refused_with_what_is_allowed(book: Path) -> None:
    with pytest.raises(ArgumentError, match=r"notebook must be one of one"):
        find_chapters(book, ["two"], "quick")
    with pytest.raises(ArgumentError, match=r"profile must be one of quick, smoke"):
        find_chapters(book, [], "fast")


def test_a_profile_names_only_parameters_that_the_notebook_has(book: Path) -> None:
    (book / "notebooks" / "profiles" / "smoke.yaml").write_text("one: {more: 1}\n", encoding="utf-8")
    assert find_chapters(book, [], "quick")[0].parameters["samples"] == 10
    with pytest.raises(ArgumentError, match=r"profile smoke must be one of profile, samples, scale, name"):
        find_chapters(book, [], "smoke")


@pytest.mark.slow
def test_a_changed_parameter_is_executed_and_outputs_by_hand_are_made_again(book: Path) -> None:
    path = book / "notebooks" / "one.ipynb"
    run_figures(log=lambda _: None)
    notebook = read_notebook(path)
    notebook.cells[2].outputs[0].text = "by hand\n"
    write_notebook(notebook, path)
    said: list[str] = []
    assert run_figures(check=True, log=said.append) == ["one"]
    assert said[-1].endswith("changed: outputs, by a run that was not `qkrepro figures`")
    write_notebook(with_parameters(notebook, {"samples": 11}), path)
    assert run_figures(log=lambda _: None) == ["one"]
    assert "11 ä" in _outputs(path)
    assert run_figures(check=True, log=lambda _: None) == []


def test_parameters_are_put_in_place_with_their_comments() -> None:
    notebook = new_notebook(cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})])
    changed = with_parameters(notebook, {"samples": 3, "scale": [1.0, 2.5], "name": "ö"})
    expected = PARAMETERS.replace("10", "3").replace('"ä"', "'ö'")
    assert changed.cells[0].source == expected


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(), st.booleans())))
def test_any_plain_value_survives_the_parameters_cell(values: list[object]) -> None:
    source = 'first = (1,\n  2)  # ä two lines\nsecond = "x"'
    notebook = new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]})])
    wanted = {"first": values, "second": values[0] if values else 1}
    assert default_parameters(with_parameters(notebook, wanted)) == wanted


@pytest.mark.parametrize("source", ["import os", "x = f()", "x, y = 1, 2"])
def test_a_parameters_cell_holds_plain_values_only(source: str) -> None:
    notebook = new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]})])
    with pytest.raises(NotebookError, match=r"parameters cell, line 1: must be of the form name = plain value"):
        default_parameters(notebook)


def test_a_file_that_is_no_notebook_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.ipynb").write_text("{")
    with pytest.raises(NotebookError, match=r"x\.ipynb cannot be read"):
        read_notebook(tmp_path / "x.ipynb")


def test_outside_a_checkout_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="must lie in a checkout"):
        run_figures(log=lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["figures", "two"], "qkrepro: notebook must be one of one, got 'two'\n"),
        (["figures", "--profile", "fast"], "qkrepro: profile must be one of quick, smoke, got 'fast'\n"),
    ],
)
def test_the_command_refuses_in_one_line_and_exits_with_2(
    book: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["qkrepro", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == line


def test_check_exits_with_1_when_something_is_stale(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["qkrepro", "figures", "--check"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1


def test_printed_text_that_the_kernel_cut_in_two_is_one_output():
    pieces = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("a\n", "b", "\n", "c")]
    table = nbformat.v4.new_output("execute_result", data={"text/plain": "1"})
    cell = new_code_cell("print()", outputs=[*pieces[:3], table, pieces[3]])
    outputs = clean(new_notebook(cells=[cell]), {}).cells[0].outputs
    assert [output.get("text") for output in outputs] == ["a\nb\n", None, "c"]
