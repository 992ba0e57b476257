"""From a fresh copy: the site builds strictly, stays in its sizes, and never shows what is stale."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from checkout_copy import SMALL, Copy

from qkrepro.publishing.claims_pages import all_claims, write_pages
from qkrepro.publishing.neighbours_page import write_neighbours
from qkrepro.publishing.notebooks import read_notebook
from qkrepro.publishing.site import configuration

ROOT = Path(__file__).parents[2]
SITE_MB, PAGE_MB = 30, 2
WITH_TRAINING, WITH_WEIGHTS = "deeper_and_wider", "real_weights"  # what last bits could change
FAILED = '"ename": "E", "evalue": "v", "traceback": [], "output_type": "error"'


def _committed(copy: Copy) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (copy.root / "notebooks").rglob("*") if path.is_file()}


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


def test_generated_pages_are_those_that_the_committed_numbers_give(tmp_path: Path) -> None:
    made = [*write_pages(tmp_path), write_neighbours(ROOT, tmp_path)]
    assert len(made) == 3
    for path in made:
        assert path.read_bytes() == (ROOT / "book" / "generated" / path.name).read_bytes(), path.name


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
@pytest.mark.parametrize("half", [0, 1])
def test_every_chapter_runs_at_the_smoke_profile_and_changes_nothing_committed(copy: Copy, half: int) -> None:
    names = sorted(path.stem for path in (copy.root / "notebooks").glob("*.ipynb"))[half::2]
    before = _committed(copy)
    done = copy.qkrepro("figures", *names, "--profile", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.stem for path in (copy.root / "_build" / "smoke" / "notebooks").glob("*.ipynb")) == names
    assert _committed(copy) == before


@pytest.mark.slow
def test_a_page_of_the_smoke_profile_says_so_and_is_built_apart(small: Copy) -> None:
    before = _committed(small)
    for command in ("figures", "html"):
        done = small.qkrepro(command, "--profile", "smoke")
        assert done.returncode == 0, done.stdout + done.stderr
    assert _committed(small) == before
    assert not (small.root / "_build" / "html").exists()
    page = (small.root / "_build" / "smoke" / "html" / "notebooks" / f"{SMALL}.html").read_text(encoding="utf-8")
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
    lines = copy.qkrepro("figures", "--check").stdout.splitlines()[1:]
    assert {line.split()[1].rstrip(":") for line in lines} == reach


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        (
            "_toc.yml",
            "book/changelog",
            "book/changes_log",
            "_toc.yml must name pages that are there (or use --draft), got book/changes_log",
        ),
        (f"notebooks/{SMALL}.ipynb", '"execution_count": 1,', '"execution_count": null,', "not executed"),
        (f"notebooks/{SMALL}.ipynb", '"output_type": "display_data"', FAILED, "has a cell that failed"),
    ],
)
def test_a_page_that_is_missing_or_did_not_run_fails_the_build_by_name(
    small: Copy, path: str, old: str, new: str, message: str
) -> None:
    small.change(path, old, new)
    done = small.qkrepro("html")
    assert done.returncode == 2
    assert message in done.stdout + done.stderr
    assert not (small.root / "_build" / "html").exists()


@pytest.mark.slow
def test_a_warning_fails_the_build_with_its_place_be_it_a_link_or_a_sentence_of_another_verdict(small: Copy) -> None:
    claim = next(claim for claim in all_claims() if claim.chapter == SMALL)
    with (small.root / "book" / "intro.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{{doc}}`nowhere`\n\nIt is {{verdict}}`{claim.name}: not run`.\n")
    done = small.qkrepro("html")
    assert done.returncode == 2
    written_for = f"written for the verdict 'not run' of claim {claim.name}, which now is "
    for warning in ("unknown document: 'nowhere'", written_for):
        assert re.search(rf"book/intro\.md:\d+: .*{re.escape(warning)}", done.stdout), warning
    assert not (small.root / "_build" / "html").exists()


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
