"""Notebooks as files: read, write whole or not at all, the cells with a role, and outputs without a run's traces."""

import ast
import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from qkrepro.errors import NotebookError
from qkrepro.evidence.numbers import plain_value
from qkrepro.files import write_atomically

COLAB = "colab"  # tag of the cell that `colab` writes; no output follows from it


def read_notebook(path: Path) -> NotebookNode:
    """Return a notebook in format 4; raises NotebookError when the file is not one."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises errors of several libraries
        raise NotebookError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def chapter_names(root: Path) -> list[str]:
    """Return the names of the notebooks of a checkout: in the order of `_toc.yml`, then those that it does not name."""
    contents = (root / "_toc.yml").read_text(encoding="utf-8")
    listed = re.findall(r"file:\s*notebooks/(\w+)\s*$", contents, re.MULTILINE)
    there = sorted(path.stem for path in (root / "notebooks").glob("*.ipynb"))
    return [name for name in listed if name in there] + [name for name in there if name not in listed]


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    write_atomically(path, (nbformat.writes(notebook).rstrip() + "\n").encode())


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells that make the outputs, in order: all but the one for Colab."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and not _is_for_colab(cell)]


def colab_cell(notebook: NotebookNode) -> NotebookNode | None:
    """Return the cell for Colab as it was written, whoever ran it since; None where there is none."""
    cell = next(filter(_is_for_colab, notebook.cells), None)
    return cell and nbformat.from_dict({**cell, "execution_count": None, "outputs": []})


def with_colab_cell(notebook: NotebookNode, cell: NotebookNode | None) -> NotebookNode:
    """Return the notebook with this cell before its first code cell, and no other one for Colab; None: with none."""
    cells = [other for other in notebook.cells if not _is_for_colab(other)]
    if cell is not None:
        cells.insert(next((i for i, other in enumerate(cells) if other.cell_type == "code"), len(cells)), cell)
    notebook.cells = cells
    return notebook


def default_parameters(notebook: NotebookNode) -> dict[str, Any]:
    """Return the values that the cell tagged `parameters` sets, by name; NotebookError unless they are plain values."""
    defaults = {}
    for node in ast.parse(parameters_cell(notebook).source).body:
        try:
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                raise ValueError("not of the form name = value")
            defaults[node.targets[0].id] = ast.literal_eval(node.value)
        except ValueError as error:
            raise NotebookError(
                f"parameters cell, line {node.lineno}: must be of the form name = plain value ({error})"
            ) from error
    return defaults


def with_parameters(notebook: NotebookNode, parameters: Mapping[str, Any]) -> NotebookNode:
    """Return the notebook with these values in its `parameters` cell, comments kept: its page shows what was run."""
    cell = parameters_cell(notebook)
    lines = cell.source.splitlines()
    for node in reversed(ast.parse(cell.source).body):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in parameters:
            value, new = node.value, parameters[node.targets[0].id]
            if plain_value(ast.literal_eval(value)) == plain_value(new):
                continue
            first, last = value.lineno - 1, (value.end_lineno or value.lineno) - 1
            head = lines[first].encode()[: value.col_offset].decode()
            tail = lines[last].encode()[value.end_col_offset :].decode()
            lines[first : last + 1] = [head + repr(new) + tail]
    cell.source = "\n".join(lines)
    return notebook


def clean(notebook: NotebookNode, record: Mapping[str, Any]) -> NotebookNode:
    """Return the notebook without timestamps, paths and versions, so that equal runs give equal bytes.

    `record` is put into its metadata.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"}
            | {"pygments_lexer": "ipython3"},
            "qkrepro": dict(record),
        }
    )
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", ["kept"]):
            cell.metadata.pop("tags")
        if cell.cell_type == "code":
            cell.outputs = joined_streams(cell.outputs)
    return notebook


def joined_streams(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Return the outputs with the pieces of a stream joined: where a kernel cuts printed text is a matter of timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream" and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def outputs_digest(notebook: NotebookNode) -> str:
    """Return the digest of all outputs, by which a run by hand is told from one by `qkrepro figures`."""
    outputs = [[o.output_type, o.get("text"), o.get("data")] for c in notebook.cells for o in c.get("outputs", [])]
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()[:16]


def png_outputs(notebook: NotebookNode, tag: str | None = None) -> list[bytes]:
    """Return the stored PNG pictures in order, of all cells or of those with this tag."""
    cells = [cell for cell in notebook.cells if tag is None or tag in cell.metadata.get("tags", [])]
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return [base64.b64decode(kinds["image/png"]) for kinds in data if "image/png" in kinds]


def parameters_cell(notebook: NotebookNode) -> NotebookNode:
    """Return the one code cell tagged `parameters`; raises NotebookError when there is none or more."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1 or cells[0].cell_type != "code":
        raise NotebookError(f"exactly one code cell must be tagged `parameters`, got {len(cells)} cells")
    return cells[0]


def _is_for_colab(cell: NotebookNode) -> bool:
    return COLAB in cell.metadata.get("tags", [])
