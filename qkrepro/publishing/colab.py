"""The first cell of a chapter, for Colab: it is in the notebooks exactly while the repository has a public address.

Colab opens a notebook of a public repository alone, in an empty folder, and has nothing of the book: the cell fetches
the repository, lets `binder/colab.py` install what is missing, and goes to the folder that the chapter expects. It does
nothing elsewhere, is not shown on the page, and no output follows from it: `figures` neither runs nor digests it.
"""

import json
from pathlib import Path

import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from qkrepro.publishing.notebooks import COLAB, read_notebook, with_colab_cell, write_notebook

SOURCE = """\
import os
import sys

if "google.colab" in sys.modules and not os.path.exists("../_toc.yml"):  # on Colab, once; elsewhere this does nothing
    from subprocess import check_call

    url, branch = {url}, {branch}
    if not os.path.exists("book"):
        check_call(["git", "clone", "-q", "--depth", "1", "--branch", branch, url, "book"])
    check_call([sys.executable, "book/binder/colab.py"])  # installs what Colab lacks, and keeps its NumPy and PyTorch
    sys.path.insert(0, os.path.abspath("book"))  # without a restart the new installation is not seen
    os.chdir("book/notebooks")"""


def write_colab_cells(root: Path) -> list[str]:
    """Bring the cell for Colab in every notebook of the checkout up to `_config.yml`; returns the notebooks changed.

    With an address each notebook has the cell, with none it has not; nothing else in a notebook changes.
    Raises NotebookError, before anything is written, when a notebook cannot be read.
    """
    changed = _changed(root)
    for path, notebook in changed.items():
        write_notebook(notebook, path)
    return [path.stem for path in changed]


def outdated_colab_cells(root: Path) -> list[str]:
    """Return the notebooks whose cell for Colab does not fit `_config.yml`: missing, too many, another address."""
    return [path.stem for path in _changed(root)]


def expected_cell(root: Path) -> NotebookNode | None:
    """Return the cell that fetches the branch of the launch buttons in `_config.yml`; None without an address."""
    repository = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
    url, branch = (repository.get("url") or "").rstrip("/"), repository.get("branch") or "main"
    if not url:
        return None
    source = SOURCE.format(url=json.dumps(url), branch=json.dumps(branch))
    return new_code_cell(source, id=COLAB, metadata={"tags": [COLAB, "remove-cell"]})


def _changed(root: Path) -> dict[Path, NotebookNode]:
    """Return the notebooks that are not as they should be, as they should be."""
    changed, cell = {}, expected_cell(root)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = read_notebook(path)
        before = list(notebook.cells)
        if with_colab_cell(notebook, cell).cells != before:
            changed[path] = notebook
    return changed
