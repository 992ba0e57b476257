"""A copy of the checkout that tests may run and break."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nbformat.v4 import new_markdown_cell

from qkrepro.publishing.notebooks import read_notebook, write_notebook

ROOT = Path(__file__).parent.parent
SMALL = "softmax_linearisation"  # the one chapter of a small copy
SMALL_CONTENTS = f"""format: jb-book
root: book/intro
parts:
  - caption: Run
    numbered: true
    chapters:
      - file: notebooks/{SMALL}
  - caption: Reference
    chapters:
      - file: book/provenance
      - file: book/changelog
"""


class Copy:
    """A copy of what git would commit, with the package of that copy."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def qkrepro(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command in the copy; output and exit code are in the answer."""
        command = [sys.executable, "-c", "from qkrepro.cli.app import main; main()", *arguments]
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        environment.pop("QKREPRO_NUMBERS", None)
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)

    def change(self, path: str, old: str, new: str) -> None:
        """Replace text in a file of the copy; it must be there."""
        file = self.root / path
        text = file.read_text(encoding="utf-8")
        assert old in text, f"{path} has no {old!r}"
        file.write_text(text.replace(old, new), encoding="utf-8")


def _files() -> Sequence[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def make_copy(target: Path) -> Copy:
    """Copy the files under version control, and the new ones that git does not ignore."""
    for name in _files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return Copy(target)


def make_small_copy(target: Path) -> Copy:
    """Copy the checkout with a book of four pages, which builds in seconds.

    Its front page says who to tell of an error, a chapter has code and outputs but no prose, and two pages have a
    title, so that nothing leads to a page that is not there.
    """
    copy = make_copy(target)
    (target / "_toc.yml").write_text(SMALL_CONTENTS, encoding="utf-8")
    (target / "book" / "intro.md").write_text("# Small\n\n```{include} generated/edition.md\n```\n", encoding="utf-8")
    for page in ("CHANGELOG.md", "book/provenance.md"):
        (target / page).write_text("# Title\n", encoding="utf-8")
    first_edition = target / "book" / "first_edition.csv"
    first_edition.write_text(first_edition.read_text(encoding="utf-8").partition("\n")[0] + "\n", encoding="utf-8")
    for path in [*target.glob("notebooks/*.ipynb"), *target.glob("qkrepro/chapters/*.py")]:
        if path.stem not in (SMALL, "__init__"):
            path.unlink()
    chapter = target / "notebooks" / f"{SMALL}.ipynb"
    notebook = read_notebook(chapter)
    notebook.cells = [new_markdown_cell("# Chapter"), *(cell for cell in notebook.cells if cell.cell_type == "code")]
    write_notebook(notebook, chapter)
    return copy
