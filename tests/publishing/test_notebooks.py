"""Every committed notebook keeps the book's contract: executed, current, short, described, and the same everywhere."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from nbformat import NotebookNode

from qkrepro.publishing.claims_pages import all_claims, changed_verdicts, verdicts, write_pages
from qkrepro.publishing.colab import outdated_colab_cells
from qkrepro.publishing.execution import find_chapters, reads, run_figures
from qkrepro.publishing.notebooks import code_cells, default_parameters, read_notebook

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = ("smoke", "paper")
LOCAL_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|opt|var)/\w|[A-Z]:\\\\?\w")
PLUMBING = re.compile(r"open_page\(|page\.table\(|page\.close\(|import open_page$")
SHORT, LONGEST_CELL = 25, 40  # lines: of most cells, of any cell

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def _outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _text(output: NotebookNode) -> str:
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return json.dumps([output.get("text"), data, output.get("traceback")], ensure_ascii=False)


@each_notebook
def test_every_code_cell_was_executed_in_order(path: Path) -> None:
    cells = code_cells(read_notebook(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each_notebook
def test_outputs_hold_no_error_no_stderr_and_no_path_of_a_machine(path: Path) -> None:
    outputs = _outputs(read_notebook(path))
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [found for output in outputs if (found := LOCAL_PATH.search(_text(output)))]


@each_notebook
def test_cells_are_short(path: Path) -> None:
    lengths = [len(cell.source.splitlines()) for cell in code_cells(read_notebook(path))]
    assert max(lengths) <= LONGEST_CELL
    assert sorted(lengths)[len(lengths) * 3 // 4] <= SHORT


@each_notebook
def test_one_call_opens_the_page_and_one_saves_and_glues(path: Path) -> None:
    cells = code_cells(read_notebook(path))[1:]
    calls = [name for cell in cells for name in re.findall(r"\b(open_page|page\.close)\(", cell.source)]
    assert calls == ["open_page", "page.close"]
    assert "open_page(" in cells[0].source
    assert "page.close(" in cells[-1].source
    hidden = [cell.source for cell in cells if {"remove-input", "hide-input"} & set(_tags(cell))]
    assert hidden
    assert not [found for source in hidden if (found := re.search(r"\b(print|glue|save_numbers)\(", source))]


def test_less_than_a_tenth_of_the_code_of_the_chapters_is_plumbing() -> None:
    """Plumbing is what a reader of the mathematics need not see: opening the page, showing, saving and gluing.

    It is the import of `open_page` and each call of it, of `page.table` and of `page.close`, a line each: their
    arguments are content, as a figure's caption is. The share is of all lines of code but the parameters. The imports
    of what the mathematics and the figures use are not plumbing.
    """
    sources = [cell.source for path in PATHS for cell in code_cells(read_notebook(path))[1:]]
    lines = [line for source in sources for line in source.splitlines() if line.strip() and line.strip()[0] != "#"]
    plumbing = [line for line in lines if PLUMBING.search(line)]
    assert len(plumbing) >= 3 * len(PATHS)
    assert len(plumbing) < len(lines) / 10


@each_notebook
def test_parameters_come_first_with_the_profile_and_a_handful_of_values(path: Path) -> None:
    notebook = read_notebook(path)
    first = code_cells(notebook)[0]
    assert "parameters" in _tags(first)
    assert first.source.startswith('profile = "quick"\n')
    assert 2 <= len(default_parameters(notebook)) <= 14


@each_notebook
def test_metadata_holds_the_kernel_the_profile_and_the_digests_only(path: Path) -> None:
    metadata = read_notebook(path).metadata
    assert set(metadata) == {"kernelspec", "language_info", "qkrepro"}
    assert metadata.kernelspec.name == "python3"
    assert metadata.qkrepro.profile == "quick"


@each_notebook
def test_every_figure_has_a_name_a_caption_and_a_text_for_who_cannot_see_it(path: Path) -> None:
    cells = [
        cell for cell in code_cells(read_notebook(path)) if any("image/png" in o.get("data", {}) for o in cell.outputs)
    ]
    assert cells
    for cell in cells:
        described = cell.metadata.get("mystnb", {})
        assert described.get("figure", {}).get("name", "").startswith("fig-"), cell.source
        assert len(described["figure"].get("caption", "")) > 30, cell.source
        assert len(described.get("image", {}).get("alt", "")) > 20, cell.source


@each_notebook
def test_a_reader_is_told_the_command_that_runs_it(path: Path) -> None:
    prose = "\n".join(cell.source for cell in read_notebook(path).cells if cell.cell_type == "markdown")
    assert f"qkrepro figures {path.stem}" in prose
    title = next(line for line in prose.splitlines() if line.startswith("# "))
    assert not title[2].isdigit(), f"the table of contents numbers the chapters; the title is {title!r}"


@each_notebook
def test_its_numbers_are_saved_beside_it(path: Path) -> None:
    saved = json.loads((ROOT / "notebooks" / "numbers" / f"{path.stem}.json").read_text(encoding="utf-8"))
    assert saved["profile"] == "quick"
    assert saved["tables"]
    assert saved["processor"]
    assert saved["parameters"] == default_parameters(read_notebook(path))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_changes_parameters_of_notebooks_that_exist(profile: str) -> None:
    assert len(find_chapters(ROOT, [], profile)) == len(PATHS)
    entries = yaml.safe_load((ROOT / "notebooks" / "profiles" / f"{profile}.yaml").read_text(encoding="utf-8"))
    assert entries
    assert set(entries) <= {path.stem for path in PATHS}
    for name, changes in entries.items():
        defaults = default_parameters(read_notebook(ROOT / "notebooks" / f"{name}.ipynb"))
        assert changes
        assert [parameter for parameter, value in changes.items() if defaults[parameter] == value] == [], name


def test_what_a_chapter_reads_is_there() -> None:
    patterns = [pattern for path in PATHS for pattern in reads(ROOT, path.stem)]
    assert patterns
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []


def test_committed_outputs_are_current() -> None:
    lines: list[str] = []
    assert run_figures(check=True, log=lines.append) == [], lines


def test_each_has_the_cell_for_colab_exactly_while_there_is_a_public_address() -> None:
    assert outdated_colab_cells(ROOT) == [], "the address in _config.yml changed; run `qkrepro colab`"


def test_names_of_figures_and_glued_keys_are_unique_in_the_book() -> None:
    names: Counter[str] = Counter()
    for path in PATHS:
        notebook = read_notebook(path)
        names.update(cell.metadata.get("mystnb", {}).get("figure", {}).get("name", "") for cell in code_cells(notebook))
        glued = {
            output.metadata.get("scrapbook", {}).get("name", "") for output in _outputs(notebook) if "data" in output
        }
        names.update(glued)
    del names[""]
    assert not [name for name, count in names.items() if count > 1]


def test_the_table_of_contents_has_every_notebook_and_page_and_no_other() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    pages = [f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")]
    notebooks = [f"notebooks/{path.stem}" for path in PATHS]
    assert sorted(listed) == sorted({*pages, *notebooks, "book/changelog"})


def test_every_verdict_follows_from_the_saved_numbers() -> None:
    table = verdicts()
    assert changed_verdicts(table) == []
    assert len(table) == len(all_claims())


def test_generated_pages_are_current(tmp_path: Path) -> None:
    for path in write_pages(tmp_path):
        assert (ROOT / "book" / "generated" / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
