"""Sphinx extension: under each figure of a notebook where it comes from, and on each code cell a place to link to."""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def _add(app: Sphinx, doctree: nodes.document) -> None:
    file = Path(app.srcdir) / "book" / "generated" / "figures.json"
    origins = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    cells = [node for node in doctree.findall(nodes.container) if node.get("nb_element") == "cell_code"]
    for cell in cells:
        cell["ids"].append(f"cell-{cell.get('exec_count')}")
        for figure in list(cell.findall(nodes.figure)):
            names = [name for name in figure["names"] if name in origins]
            for name in names[:1]:
                place = cell.parent.index(cell) + 1
                cell.parent[place:place] = _fold(origins[name])


def _fold(origin: dict[str, Any]) -> list[nodes.Node]:
    """Return what is behind a figure in one line, and below it, folded, how it was made and the command."""
    opened = f'<details class="figure-origin"><summary>{source_line(origin)}</summary>'
    return [nodes.raw("", opened, format="html"), _line(origin), nodes.raw("", "</details>", format="html")]


def source_line(origin: dict[str, Any]) -> str:
    """Return what a figure rests on: records, or what was computed when its chapter was executed, and chance."""
    line = "Computed when this chapter was executed"
    if origin["recorded"]:
        line = f"From the records that this chapter reads ({origin['records']})"
    return line + f"; {origin['chance']}" * bool(origin["chance"])


def _line(origin: dict[str, Any]) -> nodes.paragraph:
    """Return cell, profile, records, revision, the command, and the way to the whole table."""
    line = nodes.paragraph()
    cell = f"cell-{origin['cell']}"
    line += [nodes.Text("Drawn by "), nodes.reference("", cell.replace("-", " "), refid=cell, internal=True)]
    line += [nodes.Text(" of "), nodes.literal("", f"{origin['chapter']}.ipynb")]
    line += nodes.Text(f" at profile {origin['profile']}")
    for number, name in enumerate(origin["reads"] if origin["recorded"] else []):
        line += [nodes.Text(", " if number else " from "), nodes.literal("", name)]
    line += [nodes.Text(". Last changed in revision "), nodes.literal("", origin["revision"])]
    line += nodes.Text(": git shows with it what the outputs of this chapter followed from. Draw it again: ")
    line += [nodes.literal("", origin["command"]), nodes.Text(". ")]
    page = addnodes.pending_xref("", refdomain="std", reftype="doc", reftarget="/book/provenance", refexplicit=True)
    page += nodes.inline("", "All origins")
    line += [page, nodes.Text(".")]
    return line


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("doctree-read", _add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
