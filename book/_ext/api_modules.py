"""Sphinx extension: in book/api.md a comment `<!-- modules: NAME NAME -->` becomes the reference of these modules."""

import re

from sphinx.application import Sphinx

_COMMENT = re.compile(r"<!-- modules: ([\w. ]+) -->")


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname != "book/api":
        return

    def reference(comment: re.Match[str]) -> str:
        section = "### {0}\n\n```{{eval-rst}}\n.. automodule:: qkrepro.{0}\n   :members:\n```\n"
        return "\n".join(section.format(name) for name in comment[1].split())

    source[0] = _COMMENT.sub(reference, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
