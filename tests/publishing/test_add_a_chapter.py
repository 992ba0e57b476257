"""The page "Add a chapter": its blocks, put into a copy of the checkout, make a chapter that runs and is judged."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from checkout_copy import Copy

PAGE = Path(__file__).parents[2] / "book" / "add_a_chapter.md"
BLOCK = re.compile(
    r"^````\{code-block\} (\w+)\n:caption: ([^,\n]+)(?:, ([^\n]+))?\n(.*?)\n````$", re.MULTILINE | re.DOTALL
)
NAME, CLAIM = "colder_attention", "colder-attention-is-sharper"
OTHERS = "not test_committed_outputs_are_current"  # of this chapter, `figures --check` says it
TESTS = (
    "test_house.py",
    "chapters/test_colder_attention.py",
    "publishing/test_pages.py",
    "publishing/test_notebooks.py",
)


def add_the_chapter(copy: Copy) -> None:
    """Write the blocks of the page to the files that their captions name."""
    cells, metadata = [], {}
    for language, path, about, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if path.endswith(".py"):
            (copy.root / path).write_text(f"{text}\n", encoding="utf-8")
        elif path == "_toc.yml":
            copy.change(path, "      - file: notebooks/plateaus\n", f"      - file: notebooks/plateaus\n{text}\n")
        elif language == "json":
            metadata = json.loads(text)
        elif language == "markdown":
            cells.append(nbformat.v4.new_markdown_cell(text))
        else:
            tags = re.findall(r"tag ([\w-]+)", about)
            cells.append(nbformat.v4.new_code_cell(text, metadata={"tags": tags} if tags else {}))
    (figure,) = [cell for cell in cells if "main-figure" in cell.metadata.get("tags", [])]
    figure.metadata |= metadata
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, copy.root / "notebooks" / f"{NAME}.ipynb")


def run(copy: Copy, *command: str) -> None:
    """Run a Python module in the copy, with the package of the copy; it must succeed."""
    environment = os.environ | {"PYTHONPATH": str(copy.root)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=copy.root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_chapter_of_the_page_runs_is_judged_and_stands_in_the_book(copy: Copy) -> None:
    add_the_chapter(copy)
    ours = [f"qkrepro/chapters/{NAME}.py", f"tests/chapters/test_{NAME}.py"]
    run(copy, "ruff", "check", *ours)
    run(copy, "ruff", "format", "--check", *ours)
    run(copy, "mypy", "--cache-dir", str(PAGE.parents[1] / ".mypy_cache"), ours[0])  # what `make lint` has read already
    executed = copy.qkrepro("figures", NAME)
    assert executed.returncode == 0, executed.stdout + executed.stderr
    assert copy.qkrepro("figures", NAME, "--check").returncode == 0
    built = copy.qkrepro("html")
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    run(copy, "pytest", "-q", "-m", "not slow", "-k", OTHERS, *(f"tests/{name}" for name in TESTS))
    site = copy.root / "_build" / "html"
    page = (site / "notebooks" / f"{NAME}.html").read_text(encoding="utf-8")
    badge = f'<span class="verdict verdict-reproduced"><a [^>]*href="../book/claims.html#claim-{CLAIM}"[^>]*>'
    assert re.search(badge + r"<span[^>]*>reproduced \(4 of 4\)", page)
    assert '<details class="numbers">' in page
    assert f'id="claim-{CLAIM}"' in (site / "book" / "claims.html").read_text(encoding="utf-8")
    reference = (site / "book" / "api" / "chapters.html").read_text(encoding="utf-8")
    assert f'id="module-qkrepro.chapters.{NAME}"' in reference


def test_the_page_shows_all_four_files() -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    paths = {path for _, path, _, _ in blocks}
    module, test, notebook = f"qkrepro/chapters/{NAME}.py", f"tests/chapters/test_{NAME}.py", f"notebooks/{NAME}.ipynb"
    assert paths == {module, test, notebook, "_toc.yml"}
    assert len(blocks) == PAGE.read_text(encoding="utf-8").count("{code-block}")
