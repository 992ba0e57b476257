"""Every figure and record is on the provenance page, and the front page's own facts are counted, not typed."""

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from checkout_copy import Copy

from qkrepro.publishing.claims_pages import all_claims, verdicts
from qkrepro.publishing.front_page import answer_line, chapter_map, edition_line
from qkrepro.publishing.notebooks import chapter_names
from qkrepro.publishing.provenance import FigureOrigin, RecordOrigin, figure_origins, provenance_page, record_origins
from qkrepro.publishing.revision import file_revision

ROOT = Path(__file__).parents[2]
FIGURE = FigureOrigin("fig-x", "10_x", 3, "quick", "seed = 0", (), "abc1234", "qkrepro figures 10_x --force")
RECORD = RecordOrigin("s", "run-1", 0, 0.0, "qkrepro sweep results/s.yaml", "f" * 40, "c", "d" * 64)


def test_every_figure_of_every_notebook_has_an_origin() -> None:
    named = [
        cell["metadata"]["mystnb"]["figure"]["name"]
        for name in chapter_names(ROOT)
        for cell in json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        if "figure" in cell["metadata"].get("mystnb", {})
    ]
    assert [origin.name for origin in figure_origins(ROOT)] == named


def test_every_committed_record_is_there_with_its_revision_and_corpus_digest() -> None:
    page = provenance_page([], record_origins(ROOT))
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.splitlines() if name.endswith("run.json")]
    assert files
    for path in files:
        run = json.loads(path.read_text())
        sweep = page.split(f"### results/{path.parent.parent.name}\n")[1].split("\n### ")[0]
        (row,) = (line for line in sweep.splitlines() if f"| `{path.parent.name}` |" in line)
        assert run["environment"]["revision"][:7] in row
        assert run["corpus"]["digest"][:12] in row
        assert run["corpus"]["digest"] in page


@pytest.mark.parametrize(
    ("reads", "found"),
    [
        ("results", True),
        ("results/s", True),
        ("results/s/", True),
        ("results/s*", True),
        ("results/s/run-1", True),
        ("results/s/run-*", True),
        ("results/s/run-1/run.json", True),
        ("results/t", False),
        ("results/s/run-2", False),
        ("notebooks/texts/walk.txt", False),
    ],
)
def test_a_record_is_read_by_who_names_it_its_sweep_or_a_pattern(reads: str, found: bool) -> None:
    page = provenance_page([dataclasses.replace(FIGURE, reads=(reads,))], [RECORD])
    assert ("(1 record)" in page) is found
    assert ("read by {doc}`../notebooks/10_x`" in page) is found
    assert ("read by no chapter" in page) is not found


def test_a_changed_file_has_a_revision_with_a_plus(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    file = tmp_path / "a"
    file.write_text("1")
    assert "not a git checkout" in file_revision(tmp_path, file)
    git("init", "-q")
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "--allow-empty", "-m", "m")
    assert file_revision(tmp_path, file) == "not committed"
    git("add", "a")
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "m")
    assert file_revision(tmp_path, file) == git("rev-parse", "--short", "HEAD")
    file.write_text("2")
    assert file_revision(tmp_path, file) == git("rev-parse", "--short", "HEAD") + "+"


def test_the_front_page_counts_every_claim_of_the_paper_once() -> None:
    line = answer_line(verdicts())
    for provenance, words in (("paper", "of the abstract"), ("reported", "reported of the paper")):
        total, counts = re.search(rf"(\d+) claims {words}: \*\*([^*]+)\*\*", line).groups()
        assert int(total) == sum(claim.provenance == provenance for claim in all_claims())
        assert sum(int(number) for number in re.findall(r"\d+", counts)) == int(total)


def test_a_verdict_that_turns_is_counted_where_it_turned_to() -> None:
    table = pd.DataFrame({"provenance": ["paper", "paper", "ours"], "outcome": ["partly", "not run", "reproduced"]})
    assert "2 claims of the abstract: **1 partly, 1 not run**" in answer_line(table)


def test_an_error_is_reported_at_the_repository_or_to_who_gave_the_copy() -> None:
    assert "(https://example.org/o/r/issues/new)" in edition_line(ROOT, "https://example.org/o/r/")
    assert "](" not in edition_line(ROOT, "")


def test_the_map_names_every_page_and_the_question_of_every_chapter(copy: Copy) -> None:
    (copy.root / "book" / "changelog.md").write_text("# Changelog")
    toc = yaml.safe_load((copy.root / "_toc.yml").read_text(encoding="utf-8"))
    there = [
        part | {"chapters": [page for page in part["chapters"] if list(copy.root.glob(f"{page['file']}.*"))]}
        for part in toc["parts"]
    ]
    text = chapter_map(copy.root, {"root": toc["root"], "parts": there})
    for part in there:
        for page in (chapter["file"] for chapter in part["chapters"]):
            link = f"{{doc}}`../{page}`"
            row = f"| {link} " if part.get("numbered") else link
            (line,) = (
                line
                for line in text.splitlines()
                if line.startswith(row) or (row == link and link in line and "|" not in line)
            )
            assert not part.get("numbered") or line.split("|")[2].strip().endswith(("?", ".", "`", ")")), line


def test_an_origin_agrees_with_the_caption_of_its_figure() -> None:
    captions = {
        figure["name"]: figure.get("caption", "")
        for name in chapter_names(ROOT)
        for cell in json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        if (figure := cell["metadata"].get("mystnb", {}).get("figure"))
    }
    origins = figure_origins(ROOT)
    assert {origin.recorded for origin in origins} == {True, False}
    for origin in origins:
        caption = captions[origin.name]
        assert not (origin.recorded and "while this page was executed" in caption), origin.name
        assert ("no randomness" in caption) == (origin.chance == "no randomness"), origin.name
        if re.search(r"\bseeds?\b", caption):
            assert not re.search(r"\d", origin.chance), origin.name
        if "results/" not in " ".join(origin.reads):
            assert not origin.recorded, origin.name


@pytest.mark.slow
def test_under_each_built_figure_stand_folded_its_cell_and_the_command(built: Copy) -> None:
    for origin in figure_origins(built.root):
        page = built.root / "_build" / "html" / "notebooks" / f"{origin.chapter}.html"
        text = page.read_text(encoding="utf-8").split(f'<figure class="align-default" id="{origin.name}">')[1]
        line = re.search(r'<details class="figure-origin">.*?</details>', text, re.DOTALL)[0]
        words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", line))
        assert origin.command in words
        assert f"cell {origin.cell}" in words
        assert ("From " in words) is origin.recorded
        assert origin.chance in words
        assert f'id="cell-{origin.cell}"' in page.read_text(encoding="utf-8")
