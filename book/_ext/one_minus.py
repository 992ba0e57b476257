"""Sphinx extension: a negative number that a sentence cites from a notebook has a minus, as in formulas."""

import re

from docutils import nodes
from sphinx.application import Sphinx


def _write(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for number in doctree.findall(nodes.inline):
        if "pasted-text" in number["classes"]:
            text = number.astext()
            number.children = []
            number += nodes.Text(re.sub(r"^-(?=[\d.])", "−", text))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("doctree-resolved", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
