"""The cell for Colab: in every notebook exactly while there is a public address, and without effect elsewhere."""

import json
import os
import runpy
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from checkout_copy import ROOT, Copy, make_copy
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from qkrepro.publishing.colab import expected_cell, outdated_colab_cells, write_colab_cells
from qkrepro.publishing.execution import digests, find_chapters, run_figures
from qkrepro.publishing.notebooks import code_cells, default_parameters, read_notebook, write_notebook

URL = "https://github.com/example/book"
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
WITH_SEED = "softmax_linearisation"  # a chapter with a parameter `seed`
ON_COLAB = """
import json, sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
first, *others = json.load(sys.stdin)
exec(first)
assert "torch" not in sys.modules
for source in others:
    exec(source)
import os, qkrepro
print(os.getcwd(), qkrepro.__file__, seed)
exec(first)
print(os.getcwd())
"""


def _bytes(copy: Copy) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (copy.root / "notebooks").glob("*.ipynb")}


def _publish(copy: Copy, url: str = URL) -> None:
    copy.change("_config.yml", 'url: ""', f"url: {url}")


def test_every_chapter_gets_the_cell_once_and_gives_it_back_without_a_trace(copy: Copy) -> None:
    before = _bytes(copy)
    assert write_colab_cells(copy.root) == []
    _publish(copy)
    assert outdated_colab_cells(copy.root) == CHAPTERS
    done = copy.qkrepro("colab")
    assert done.stdout.split() == CHAPTERS, done.stderr
    with_cell = _bytes(copy)
    for name in CHAPTERS:
        notebook = read_notebook(copy.root / "notebooks" / f"{name}.ipynb")
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert first == expected_cell(copy.root)
        assert len(code_cells(notebook)) == sum(cell.cell_type == "code" for cell in notebook.cells) - 1
    assert write_colab_cells(copy.root) == []
    assert _bytes(copy) == with_cell
    copy.change("_config.yml", f"url: {URL}", 'url: ""')
    assert write_colab_cells(copy.root) == CHAPTERS
    assert _bytes(copy) == before


def test_another_address_or_branch_is_noticed_and_written(copy: Copy) -> None:
    _publish(copy)
    for name in CHAPTERS[1:]:
        (copy.root / "notebooks" / f"{name}.ipynb").unlink()
    write_colab_cells(copy.root)
    for old, new in ((URL, f"{URL}2/"), ("branch: main", "branch: v1")):
        copy.change("_config.yml", old, new)
        assert outdated_colab_cells(copy.root) == CHAPTERS[:1]
        assert write_colab_cells(copy.root) == CHAPTERS[:1]
    source = expected_cell(copy.root).source
    assert f'"{URL}2", "v1"\n' in source
    assert write_colab_cells(copy.root) == []


def test_no_chapter_becomes_stale_by_the_cell(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(copy)
    monkeypatch.chdir(copy.root)
    chapters = find_chapters(copy.root, [CHAPTERS[0], CHAPTERS[-1]], "quick")
    before = {chapter.name: digests(copy.root, chapter) for chapter in chapters}
    write_colab_cells(copy.root)
    assert {chapter.name: digests(copy.root, chapter) for chapter in chapters} == before
    assert all(chapter.source.read_text(encoding="utf-8").count("google.colab") == 1 for chapter in chapters)


def test_the_site_is_not_built_with_a_button_that_leads_to_a_notebook_without_the_cell(copy: Copy) -> None:
    _publish(copy)
    done = copy.qkrepro("html")
    assert done.returncode == 2
    assert "softmax_linearisation" in done.stderr
    assert "run `qkrepro colab`" in done.stderr


def test_the_cell_is_short_formatted_and_does_nothing_elsewhere(copy: Copy, tmp_path: Path) -> None:
    _publish(copy, "https://github.com/an-organisation-with-a-long-name/a-repository-with-a-long-name-too")
    write_colab_cells(copy.root)
    source = expected_cell(copy.root).source
    assert len(source.splitlines()) <= 15
    for command in ("check", "format --check"):
        ruff = [sys.executable, "-m", "ruff", *command.split(), f"notebooks/{CHAPTERS[0]}.ipynb"]
        done = subprocess.run(ruff, cwd=copy.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run([sys.executable, "-c", source], cwd=empty, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr, list(empty.iterdir())) == (0, "", [])


def test_pins_hold_for_what_is_missing_or_too_old_and_for_nothing_else() -> None:
    pins_that_hold = runpy.run_path(str(ROOT / "binder" / "colab.py"))["pins_that_hold"]
    pins = ["myst-nb==1.4.0", "numpy==2.4.6 ; python_full_version < '3.12'", "tornado==6.6.1", "torch==2.13.0"]
    needed, there = ["numpy>=2.0", "torch>=2.11"], {"numpy": "2.0.2", "tornado": "6.5.1"}
    assert pins_that_hold(pins, needed, there | {"torch": "2.12.0+cpu"}) == pins[:1]
    assert pins_that_hold(pins, needed, there | {"torch": "2.9.0+cpu"}) == [pins[0], pins[3]]


def test_the_script_asks_for_extras_and_pins_that_are_there() -> None:
    script = runpy.run_path(str(ROOT / "binder" / "colab.py"))
    project = script["tomllib"].loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(script["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    assert f"\n{script['BESIDES']}==" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_chapter_executed_again_keeps_the_cell_and_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    (tmp_path / "qkrepro").mkdir()
    for name in ("_toc.yml", "constraints.txt", "qkrepro/__init__.py"):
        (tmp_path / name).touch()
    (tmp_path / "_config.yml").write_text(f"repository: {{url: {URL}}}", encoding="utf-8")
    first = new_code_cell('profile = "quick"\nsamples = 10', metadata={"tags": ["parameters"]})
    path = tmp_path / "notebooks" / "one.ipynb"
    write_notebook(new_notebook(cells=[new_markdown_cell("# One"), first, new_code_cell("print(samples)")]), path)
    monkeypatch.chdir(tmp_path)
    assert run_figures(log=lambda _: None) == ["one"]
    write_colab_cells(tmp_path)
    made = path.read_bytes()
    assert run_figures(log=lambda _: None) == []
    assert run_figures(force=True, log=lambda _: None) == ["one"]
    assert path.read_bytes() == made
    assert [cell.get("execution_count") for cell in read_notebook(path).cells] == [None, None, 1, 2]


@pytest.mark.slow
def test_on_colab_the_cell_brings_the_book_and_the_chapter_begins(tmp_path: Path) -> None:
    """In a fresh environment that has our packages but not the book, from an empty folder, without a network."""
    published = make_copy(tmp_path / "published")
    _publish(published, f"file://{published.root}")
    write_colab_cells(published.root)
    for step in (
        "init -q -b main",
        "add -A",
        "-c user.name=nobody -c user.email=nobody@example.org commit -q -m published",
    ):
        subprocess.run(["git", *step.split()], cwd=published.root, check=True)
    opened, content = read_notebook(published.root / "notebooks" / f"{WITH_SEED}.ipynb"), tmp_path / "content"
    sources = [cell.source for cell in opened.cells if cell.cell_type == "code"][:3]
    assert "parameters" in code_cells(opened)[0].metadata.tags
    content.mkdir()
    done = subprocess.run(
        [str(_environment_without_the_book(tmp_path / "environment")), "-c", ON_COLAB],
        input=json.dumps(sources),
        cwd=content,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    seed = default_parameters(opened)["seed"]
    place = content / "book" / "notebooks"
    assert done.stdout.split() == [str(place), str(place.parent / "qkrepro" / "__init__.py"), str(seed), str(place)]
    assert [path.name for path in content.iterdir()] == ["book"]


def _environment_without_the_book(folder: Path) -> Path:
    """The Python of a new environment that sees the packages installed here, and into which alone `pip` installs."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text("\n".join(place for place in sys.path if place.endswith("site-packages")))
    return folder / "bin" / "python"
