"""Sphinx extension: a full stop or bracket after a formula stays on the formula's line."""

import re

from docutils import nodes
from sphinx.application import Sphinx

_AFTER = re.compile(r"^(?:-\w+)?[.,;:!?)\]’”\"'…]+|^-\w+")
_BEFORE = re.compile(r"[(\[“]+$")


def _join(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for formula in list(doctree.findall(nodes.math)):
        parent, place = formula.parent, formula.parent.index(formula)
        before = parent[place - 1] if place else None
        after = parent[place + 1] if place + 1 < len(parent) else None
        opening = _BEFORE.search(before) if isinstance(before, nodes.Text) else None
        closing = _AFTER.search(after) if isinstance(after, nodes.Text) else None
        if not opening and not closing:
            continue
        whole = nodes.inline(classes=["together"])
        parent.replace(formula, whole)
        whole += [nodes.Text(opening[0])] if opening else []
        whole += formula
        whole += [nodes.Text(closing[0])] if closing else []
        if before is not None and opening:
            parent.replace(before, nodes.Text(before[: opening.start()]))
        if after is not None and closing:
            parent.replace(after, nodes.Text(after[closing.end() :]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("doctree-resolved", _join)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
