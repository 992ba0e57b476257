"""Sphinx extension: docstrings are plain text with shapes such as (..., d_head): show them so, not as markup.

Signatures are text with links: an element around every word of them would be half of a page of the reference.
"""

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

WRAPPED = 88  # characters: a line of a docstring that long goes on in the next
_MARKUP = re.compile(r"([*_|`\\])")


def _plain(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn each paragraph into a block of lines with the markup characters escaped; `code` stays code."""
    new: list[str] = []
    wrapped = False
    for line in lines:
        parts = re.split(r"(`[^`]+`)", line.strip())
        text = "".join(f"\\ `{part}`\\ " if part[:1] == "`" else _MARKUP.sub(r"\\\1", part) for part in parts)
        if wrapped and text:
            new[-1] += f" {text}"
        else:
            new.append(f"| {'  ' * ((len(line) - len(line.lstrip())) // 4)}{text}" if text else "")
        wrapped = len(line) > WRAPPED
    lines[:] = [*new, ""]


def _fields_of_tuples(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of a NamedTuple, of which Python says their number alone; the signature has them."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def _plain_signatures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    parts = (addnodes.desc_parameter, addnodes.desc_returns, addnodes.desc_annotation)
    for part in list(doctree.findall(lambda node: isinstance(node, parts))):
        flat = list(_text_and_links(part))
        part.clear()
        part += flat


def _text_and_links(node: nodes.Node) -> Iterator[nodes.Node]:
    """The text below a node, in pieces as long as there is no link between them."""
    text = ""
    for child in node.children:
        inside = [child] if isinstance(child, nodes.Text | nodes.reference) else list(_text_and_links(child))
        for piece in inside:
            if isinstance(piece, nodes.Text):
                text += piece.astext()
                continue
            if text:
                yield nodes.Text(text)
            text = ""
            link = piece.copy()
            link += nodes.Text(piece.astext())
            yield link
    if text:
        yield nodes.Text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hooks."""
    app.connect("autodoc-process-docstring", _plain)
    app.connect("autodoc-skip-member", _fields_of_tuples)
    app.connect("doctree-resolved", _plain_signatures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
