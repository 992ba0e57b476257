"""Sphinx extension: a link to a glossary term or to a numbered statement says on hovering what it leads to."""

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def _notes(env: BuildEnvironment) -> dict[str, dict[str, str]]:
    """By page: the identifier of a term or statement and the note on it."""
    if not hasattr(env, "hover_notes"):
        env.hover_notes = {}
    notes: dict[str, dict[str, str]] = env.hover_notes
    return notes


def _collect(app: Sphinx, doctree: nodes.document) -> None:
    """Note the first sentence of every glossary entry and the title of every numbered statement of this page."""
    found = {}
    for glossary in doctree.findall(addnodes.glossary):
        for item in glossary.findall(nodes.definition_list_item):
            text = " ".join(item[-1].astext().split())
            sentence = re.match(r".*?[.](?=\s|$)", text)
            for term in item.findall(nodes.term):
                found.update(dict.fromkeys(term["ids"], sentence[0] if sentence else text))
    for statement in doctree.findall(lambda node: isinstance(node, nodes.Element) and "realtype" in node):
        title = re.sub(r"^\s*\((.*)\)$", r"\1", statement["title"])
        found[statement["ids"][0]] = f"{statement['realtype'].title()}: {title}" if title else ""
    _notes(app.env)[app.env.docname] = {name: note for name, note in found.items() if note}


def _attach(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    notes = {name: note for page in _notes(app.env).values() for name, note in page.items()}
    for link in doctree.findall(nodes.reference):
        name = (link.get("refuri", "").rpartition("#")[2] or link.get("refid", "")) if link.get("internal") else ""
        if name in notes and "reftitle" not in link:
            link["reftitle"] = notes[name]


def _purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    _notes(env).pop(docname, None)


def _merge(app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
    _notes(env).update(_notes(other))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks."""
    app.connect("doctree-read", _collect)
    app.connect("doctree-resolved", _attach)
    app.connect("env-purge-doc", _purge)
    app.connect("env-merge-info", _merge)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
