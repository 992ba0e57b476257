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
                cell.parent.insert(cell.parent.index(cell) + 1, _line(origins[name]))


def _line(origin: dict[str, Any]) -> nodes.paragraph:
    """One line: profile, seeds, cell, records, revision, the command, and the way to the whole table."""
    line = nodes.paragraph(classes=["figure-origin"])
    line += nodes.Text(f"Profile {origin['profile']}" + f", {origin['seeds']}" * bool(origin["seeds"]) + ". Drawn by ")
    cell = f"cell-{origin['cell']}"
    line += nodes.reference("", cell.replace("-", " "), refid=cell, internal=True)
    line += [nodes.Text(" of "), nodes.literal("", f"{origin['chapter']}.ipynb"), nodes.Text(" from ")]
    for number, name in enumerate(origin["reads"]):
        line += [nodes.Text(", " if number else ""), nodes.literal("", name)]
    count = origin["records"]
    line += nodes.Text("no record" if not origin["reads"] else f" ({count} record{'s' * (count > 1)})" if count else "")
    line += [
        nodes.Text("; outputs of revision "),
        nodes.literal("", origin["revision"]),
        nodes.Text(". Run it yourself: "),
    ]
    line += [nodes.literal("", origin["command"]), nodes.Text(" (")]
    page = addnodes.pending_xref("", refdomain="std", reftype="doc", reftarget="/book/provenance", refexplicit=True)
    page += nodes.inline("", "all origins")
    line += [page, nodes.Text(").")]
    return line


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("doctree-read", _add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
