"""From a fresh copy: the site builds strictly, stays in its budgets, and never shows what is stale."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from agreeing_outputs import outputs_difference
from checkout_copy import Copy

from qkrepro.publishing.notebooks import read_notebook
from qkrepro.publishing.site import configuration

ROOT = Path(__file__).parents[2]
NOTEBOOK_SECONDS, NOTEBOOK_MB = 15, 1500  # on two cores of a machine that needs 2.5 s for the imports; peak memory
IMPORTS, IMPORT_SECONDS = "import torch, seaborn, scipy.stats, myst_nb", 2.5
SITE_MB, PAGE_MB = 30, 2
WITH_TRAINING, WITH_WEIGHTS = "deeper_and_wider", "real_weights"  # what last bits could change
FAILED = '"ename": "E", "evalue": "v", "traceback": [], "output_type": "error"'


def _seconds_allowed() -> float:
    """The budget of a notebook here: a slower or busier machine, as its imports show, has more."""
    clock = f"import time; {IMPORTS}; print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", clock], capture_output=True, text=True, check=True)
    return NOTEBOOK_SECONDS * max(1, float(done.stdout) / IMPORT_SECONDS)


def _costs(copy: Copy) -> dict[str, dict[str, float]]:
    costs: dict[str, dict[str, float]] = json.loads((copy.root / "_build" / "quick" / "costs.json").read_text())
    return costs


def _pictures(path: Path) -> list[str]:
    outputs = [output for cell in read_notebook(path).cells for output in cell.get("outputs", [])]
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.slow
def test_a_fresh_copy_is_current_and_builds_strictly_within_its_sizes(built: Copy) -> None:
    checked = built.qkrepro("figures", "--check")
    assert checked.returncode == 0, checked.stdout
    files = [path for path in (built.root / "_build" / "html").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < SITE_MB * 1e6
    assert max(path.stat().st_size for path in files if path.suffix == ".html") < PAGE_MB * 1e6


@pytest.mark.slow
def test_generated_pages_of_the_build_equal_the_committed_ones(built: Copy) -> None:
    for path in (ROOT / "book" / "generated").iterdir():
        assert (built.root / "book" / "generated" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_notebooks_run_again_within_their_budgets_with_text_that_agrees(copy: Copy) -> None:
    done = copy.qkrepro("figures", "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    costs = _costs(copy)
    committed = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(costs) == [path.stem for path in committed]
    allowed = _seconds_allowed()
    slow = [name for name, cost in costs.items() if min(cost["wall_s"], cost["cpu_s"]) > allowed]
    if slow:  # something else may have run beside it: the second time counts
        assert copy.qkrepro("figures", "--force", *slow).returncode == 0
        costs = _costs(copy)
    over = {name: cost for name, cost in costs.items() if min(cost["wall_s"], cost["cpu_s"]) > allowed}
    over |= {name: cost for name, cost in costs.items() if cost["peak_mb"] > NOTEBOOK_MB}
    assert not over, f"{allowed:.1f} s allowed here"
    for path in committed:
        made = read_notebook(copy.root / "notebooks" / path.name)
        for now, before in zip(made.cells, read_notebook(path).cells, strict=True):
            assert outputs_difference(now.get("outputs", []), before.get("outputs", [])) is None, path.name


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_executions_on_this_machine_give_the_same_bytes(copy: Copy) -> None:
    names = [WITH_TRAINING, WITH_WEIGHTS]
    for option in ("--force", "--repeat"):
        done = copy.qkrepro("figures", *names, option)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(", the same") == len(names)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_smoke_profile_is_rendered_apart_and_changes_nothing_committed(copy: Copy) -> None:
    before = {path: path.read_bytes() for path in (copy.root / "notebooks").rglob("*") if path.is_file()}
    done = copy.qkrepro("figures", "--profile", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    done = copy.qkrepro("html", "--profile", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in (copy.root / "notebooks").rglob("*") if path.is_file()} == before
    page = (copy.root / "_build" / "smoke" / "html" / "notebooks" / "softmax_linearisation.html").read_text()
    assert "no verdict rests on it" in page
    assert re.search(r"profile.*smoke", page)


@pytest.mark.slow
def test_a_changed_function_re_executes_what_depends_on_it_and_the_figure_changes(copy: Copy) -> None:
    copy.change("qkrepro/evidence/style.py", '"figure.dpi": 200', '"figure.dpi": 60')
    checked = copy.qkrepro("figures", "--check")
    assert checked.returncode == 1
    assert "changed: qkrepro.evidence.style" in checked.stdout
    chapter = copy.root / "notebooks" / "softmax_linearisation.ipynb"
    before = _pictures(chapter)
    assert copy.qkrepro("figures", chapter.stem).returncode == 0
    after = _pictures(chapter)
    assert len(after) == len(before) > 0
    assert all(len(new) < len(old) for new, old in zip(after, before, strict=True))
    again = copy.qkrepro("figures", chapter.stem, "--check")
    assert again.returncode == 0, again.stdout


@pytest.mark.slow
def test_a_changed_module_makes_stale_who_reaches_it_and_a_changed_docstring_nobody(copy: Copy) -> None:
    notebooks = sorted((copy.root / "notebooks").glob("*.ipynb"))
    reach = {path.stem for path in notebooks if "theory.entropy" in path.read_text(encoding="utf-8")}
    assert 0 < len(reach) < len(notebooks)
    copy.change("qkrepro/theory/entropy.py", '"""How far the entropy', '"""Where and how far the entropy')
    assert copy.qkrepro("figures", "--check").returncode == 0
    with (copy.root / "qkrepro" / "theory" / "entropy.py").open("a", encoding="utf-8") as module:
        module.write("\n\nassert True\n")
    said = copy.qkrepro("figures", "--check").stdout.splitlines()[1:]
    assert {line.split()[1].rstrip(":") for line in said} == reach


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        ("book/glossary.md", "# ", "{doc}`nowhere`\n\n# ", "unknown document: 'nowhere'"),
        (
            "_toc.yml",
            "book/glossary",
            "book/glossaries",
            "_toc.yml must name pages that are there (or use --draft), got book/glossaries",
        ),
        (
            "notebooks/softmax_linearisation.ipynb",
            '"execution_count": 1,',
            '"execution_count": null,',
            "not executed",
        ),
        ("notebooks/locater.ipynb", '"output_type": "stream"', FAILED, "has a cell that failed"),
    ],
)
def test_a_broken_page_fails_the_build_by_name(copy: Copy, path: str, old: str, new: str, said: str) -> None:
    copy.change(path, old, new)
    done = copy.qkrepro("html")
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert not (copy.root / "_build" / "html").exists()


def test_buttons_lead_somewhere_or_are_not_there(copy: Copy) -> None:
    off = configuration(copy.root, "quick")
    assert "repository" not in off
    assert "launch_buttons" not in off
    assert not off["html"]["use_edit_page_button"]
    copy.change("_config.yml", 'url: ""', "url: https://github.com/example/book/")
    on = configuration(copy.root, "quick")
    assert on["repository"]["url"] == "https://github.com/example/book"
    assert on["launch_buttons"]["binderhub_url"].startswith("https://")
    assert on["html"]["use_issues_button"]


def test_the_repository_is_named_in_one_place() -> None:
    url = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    listed = subprocess.run(
        ["git", "grep", "-l", "github.com/[a-z]*/qkrepro", "--", ":!notebooks/*.ipynb"],  # `qkrepro colab` writes those
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert [
        name for name in listed.stdout.split() if name not in ("_config.yml", "tests/publishing/test_book.py")
    ] == []
    assert url == "" or url.startswith("https://")
