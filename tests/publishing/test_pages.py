"""The prose pages: nothing listed twice or missing, references cited, quotations from the abstract only."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from markdown_it import MarkdownIt

import qkrepro as qk
from qkrepro.publishing.claims_pages import all_claims, claim_link, claims_page
from qkrepro.publishing.front_page import chapter_map

ROOT = Path(__file__).parents[2]
API_PAGE_KB = 300
PAGES = sorted((ROOT / "book").glob("*.md"))
MARKS = {"paper": "primary", "reported": "info", "derived": "muted-line", "literature": "muted", "ours": "success"}


def notebook_prose():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose():
    return {path: path.read_text(encoding="utf-8") for path in PAGES} | dict(notebook_prose())


def modules():
    """Names of all modules below the package, rooms apart."""
    paths = (path.relative_to(ROOT / "qkrepro") for path in (ROOT / "qkrepro").rglob("*.py"))
    return [".".join(path.with_suffix("").parts) for path in paths if path.stem != "__init__"]


def test_every_module_stands_on_one_api_page_of_the_table_of_contents():
    contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    shown = []
    for page in (ROOT / "book" / "api").glob("*.md"):
        assert contents.count(f"- file: book/api/{page.stem}\n") == 1
        named = re.search(r"<!-- modules: (.+) -->", page.read_text(encoding="utf-8"))
        assert named, page.name
        for room, letters in re.findall(r"(\w+)(\[\w-\w\])?", named[1]):
            shown += (ROOT / "qkrepro").glob(f"{room}.py")
            shown += (ROOT / "qkrepro" / room).glob(f"{letters}*.py")
    modules = [path for path in (ROOT / "qkrepro").rglob("*.py") if path.stem != "__init__"]
    assert sorted(path for path in shown if path.stem != "__init__") == sorted(modules)
    assert len({path.parent for path in modules}) == 8


def test_every_reference_is_cited_and_has_a_doi():
    entries = re.split(r"^@", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    keys = {re.match(r"\w+\{(\w+),", entry)[1]: entry for entry in entries}
    cited = {
        key for text in prose().values() for keys in re.findall(r"\{cite\}`([^`]+)`", text) for key in keys.split(",")
    }
    assert cited == set(keys)
    assert {key for key, entry in keys.items() if " doi " not in entry} == {"glorot2010understanding"}  # it has none


def test_marks_of_provenance_look_the_same_everywhere():
    for path, text in prose().items():
        for style, mark in re.findall(r"\{bdg-([a-z-]+)\}`(\w+)`", text):
            assert MARKS.get(mark) == style, f"{path.name}: {mark}"


def test_every_numbered_statement_carries_a_mark():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for body in re.findall(r"^`{3,4}\{prf:\w+\}.*?\n(.*?)^`{3,4}$", text, re.MULTILINE | re.DOTALL):
            assert "{bdg-" in body, f"{path.name}: {body[:60]}"


def test_glossary_entries_open_with_a_sentence_that_a_tooltip_can_show():
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^(\w[^\n]*)\n  ([^\n]+)$", text, re.MULTILINE)
    assert len(entries) > 20
    assert [term for term, _ in entries] == sorted((term for term, _ in entries), key=str.casefold)
    for term, definition in entries:
        assert "$" not in re.match(r".*?\.(?=\s|$)", definition)[0], term


def test_no_statement_claims_a_figure_or_table_of_the_paper():
    for path, text in prose().items():
        for hit in re.finditer(r"(?i)\b(figure|table|theorem|section|equation)\s+\d+\s+of the paper", text):
            before = text[max(0, hit.start() - 20) : hit.start()]
            assert "no " in before.lower(), f"{path.name}: {hit[0]}"  # "There is no Figure 3 of the paper here"


@pytest.mark.parametrize(
    "claim", [claim for claim in all_claims() if claim.provenance == "paper"], ids=lambda claim: claim.name
)
def test_claims_of_the_paper_are_quoted(claim):
    assert claim.quote


def test_claims_point_to_figures_of_their_chapter():
    chapters = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb")}
    for claim in all_claims():
        if claim.figure and claim.chapter in chapters:
            assert f'"name": "{claim.figure}"' in chapters[claim.chapter], claim.name


def test_a_bar_in_a_rule_does_not_end_its_cell():
    rows = {"outcome": "not run", "because": "|a|", "holds": pd.NA, "of": pd.NA}
    table = pd.DataFrame([rows] * len(all_claims()))
    overview, details = claims_page(table, []).split("## Every claim")
    for text, bars in ((overview, 6), (details, 3)):
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) > len(all_claims())
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {bars}


def test_a_claim_is_one_sentence_with_its_conditions_apart():
    for claim in all_claims():
        assert 20 < len(claim.statement) < 185, claim.name
        assert claim.statement.endswith("."), claim.name
        assert not re.search(r"[();]", claim.statement), claim.name
        assert claim.conditions == claim.conditions.strip(" ."), claim.name


def test_a_link_to_a_claim_shows_its_signs_as_they_are():
    claim = replace(all_claims()[0], name="sum", statement="A sum *of* a_i < b_j is [here].")
    page = html.unescape(MarkdownIt().render(claim_link(claim)))
    assert page == '<p><a href="#claim-sum">A sum *of* a_i < b_j is [here].</a></p>\n'


def built_article(built, page):
    text = (built.root / "_build" / "html" / "book" / f"{page}.html").read_text(encoding="utf-8")
    return text[text.index("<article") : text.index("</article>")]


@pytest.mark.slow
def test_built_links_to_terms_statements_and_references_say_what_they_lead_to(built):
    for page in ("intro", "setting", "notation", "theory", "theory_propagation", "theory_collapse", "theory_locater"):
        for link in re.findall(r'<a class="reference internal" href="[^"]*#[^"]*"[^>]*>', built_article(built, page)):
            if re.search(r"#(term-|prop-|def-|rem-|lem-|id\d)", link):
                assert ' title="' in link, f"{page}: {link}"


@pytest.mark.slow
def test_built_prose_has_no_markup_left_over(built):
    for path in PAGES:
        article = re.sub(r"<(script|style)\b.*?</\1>", "", built_article(built, path.stem), flags=re.S)
        article = re.sub(
            r'<(span|div|code|pre)\b[^>]*class="[^"]*(math|pre|literate|highlight|sig)[^>]*>.*?</\1>',
            "",
            article,
            flags=re.S,
        )
        text = html.unescape(re.sub("<[^>]+>", " ", article))
        left = re.findall(r".{0,30}(?:\$|\\[a-z]{2,}|\{[a-z:]+\}`).{0,30}", text)
        assert path.stem == "api" or not left, f"{path.stem}: {left[:3]}"


@pytest.mark.slow
def test_built_prose_writes_negative_numbers_with_a_minus(built):
    pages = [path.read_text(encoding="utf-8") for path in (built.root / "_build" / "html").glob("*/*.html")]
    assert sum(text.count('class="pasted-text">−') for text in pages) > 10
    assert not [text for text in pages if re.search(r'class="pasted-text">-[\d.]', text)]


@pytest.mark.slow
def test_built_api_pages_have_every_module_once_and_stay_small(built):
    pages = [path.stem for path in (ROOT / "book" / "api").glob("*.md")]
    articles = "".join(built_article(built, f"api/{page}") for page in pages)
    assert len(modules()) > 50
    for name in modules():
        assert articles.count(f'id="module-qkrepro.{name}"') == 1, name
    for page in pages:
        assert (built.root / "_build" / "html" / "book" / "api" / f"{page}.html").stat().st_size < API_PAGE_KB * 1000, (
            page
        )


@pytest.mark.slow
def test_built_front_door_leads_to_every_name(built):
    article = built_article(built, "api")
    names = [name for name in qk.__all__ if name != "__version__"]
    for name in names:
        module = getattr(qk, name).__module__
        page = f"api/{module.split('.')[1]}.html"
        assert f'href="{page}#{module}.{name}"' in article, name
        assert f'id="{module}.{name}"' in built_article(built, page.removesuffix(".html"))
    assert len(names) > 20


def test_the_question_of_a_chapter_is_the_paragraph_below_its_answer_box(tmp_path):
    (tmp_path / "notebooks").mkdir()
    box = ":::{admonition} In short\n:class: answer\n{verdict}`a: partly`\n\nMore.\n:::\n\n"
    for text in (f"(ch-a)=\n# A\n\n{box}Does it?\n\nYes.", "# A\n\nDoes it?"):
        cells = [nbformat.v4.new_markdown_cell(text)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "a.ipynb")
        toc = {"parts": [{"caption": "Run", "numbered": True, "chapters": [{"file": "notebooks/a"}]}]}
        assert "| {doc}`../notebooks/a` | Does it? |" in chapter_map(tmp_path, toc)
