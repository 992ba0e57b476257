"""The role {verdict}: a sentence shows its verdict, and fails the build with its place when it becomes another one."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import nbformat
import pytest

from qkrepro.evidence.claims import HOLDS, Outcome

ROOT = Path(__file__).parents[2]
CONFIGURATION = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_nb", "verdict_role"]
nb_execution_mode = "off"
root_doc = "book/claims"
"""
STORED = (
    "claim,outcome,setting,because,holds,of\n"
    "counted,partly,,why,3,4\nplain,not a test,,why,,\nelsewhere,holds,a grid of ours,why,5,5\n"
)
CLAIMS = "# Claims\n\n(claim-counted)=\n## One\n\n(claim-plain)=\n## Two\n\n(claim-elsewhere)=\n## Three\n\n"
TREE = "```{toctree}\npage\n../notebooks/chapter\n```\n"
COLOURS = re.compile(r"--ground: #(\w{6}); --ink: #(\w{6})")


def build(folder: Path, sentence: str) -> tuple[str, dict[str, str]]:
    """Build a book with the sentence in a page and in a Markdown cell; returns the warnings and the two pages."""
    for name in ("book/generated", "notebooks"):
        (folder / name).mkdir(parents=True)
    (folder / "conf.py").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "book" / "generated" / "verdicts.csv").write_text(STORED, encoding="utf-8")
    (folder / "book" / "claims.md").write_text(CLAIMS + TREE, encoding="utf-8")
    (folder / "book" / "page.md").write_text(f"# Page\n\n{sentence}\n", encoding="utf-8")
    cells = [nbformat.v4.new_markdown_cell("# Chapter"), nbformat.v4.new_markdown_cell(f"A line.\n\n{sentence}")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / "chapter.ipynb")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(folder), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pages = {name: folder / "html" / name for name in ("book/page.html", "notebooks/chapter.html")}
    return done.stderr, {name: path.read_text(encoding="utf-8") for name, path in pages.items()}


def test_the_badge_says_outcome_and_cases_and_leads_to_the_claim(tmp_path: Path) -> None:
    warnings, pages = build(
        tmp_path, "So {verdict}`counted: partly`, {verdict}`plain: not a test`, {verdict}`elsewhere: holds`."
    )
    assert "WARNING" not in warnings
    for name, text in pages.items():
        claims = "claims.html" if name.startswith("book") else "../book/claims.html"
        badges = (
            ("partly", "counted", r"partly \(3 of 4\)"),
            ("not-a-test", "plain", "not a test"),
            ("holds", "elsewhere", r"holds in a grid of ours \(5 of 5\)"),
        )
        for kind, anchor, shown in badges:
            link = f'<a [^>]*href="{re.escape(claims)}#claim-{anchor}"[^>]*>(<span[^>]*>)?{shown}(</span>)?</a>'
            assert re.search(f'<span class="verdict verdict-{kind}">{link}</span>', text), name


@pytest.mark.parametrize(
    ("sentence", "warning"),
    [
        (
            "{verdict}`counted: reproduced`",
            "written for the verdict 'reproduced' of claim counted, which now is 'partly'",
        ),
        (
            "{verdict}`count: partly`",
            "verdict of 'count': there is no such claim; claims are counted, plain, elsewhere",
        ),
    ],
)
def test_a_sentence_of_another_verdict_is_warned_of_with_its_place(tmp_path: Path, sentence: str, warning: str) -> None:
    lines = [line for line in build(tmp_path, sentence)[0].splitlines() if "WARNING" in line]
    assert len(lines) == 2
    assert all(warning in line for line in lines)
    places = {re.sub(r":.*", "", line.replace(str(tmp_path), "")): line for line in lines}
    assert places.keys() == {"/book/page.md", "/notebooks/chapter.ipynb"}
    assert ":3:" in places["/book/page.md"]
    assert re.search(
        r"chapter\.ipynb:2000\d:", places["/notebooks/chapter.ipynb"]
    )  # a line of cell 2, as myst-nb counts


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_outcome_has_a_badge_that_is_readable_in_light_and_dark() -> None:
    style = (ROOT / "book" / "_static" / "book.css").read_text(encoding="utf-8")
    words = (*get_args(Outcome), *HOLDS.values())
    for kind in (word.replace(" ", "-") for word in words):
        rules = re.findall(rf"^(?:html\S+ )?\.verdict-{kind} {{(.*)}}", style, re.MULTILINE)
        assert len(rules) == 2, kind  # light and dark
        assert '--mark: "' in rules[0]
        for rule in rules:
            ground, ink = sorted(luminance(colour) for colour in COLOURS.search(rule).groups())
            assert (ink + 0.05) / (ground + 0.05) >= 4.5, kind
