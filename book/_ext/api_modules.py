"""Sphinx extension: the API page lists every module of the package, those that it does not name at its end.

In book/api.md a comment `<!-- modules: NAME NAME -->` stands for the reference of these modules, and
`<!-- modules: others -->` for that of all modules the page does not name.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

import qkrepro

_COMMENT = re.compile(r"<!-- modules: ([\w ]+) -->")


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname != "book/api":
        return
    there = sorted(path.stem for path in Path(qkrepro.__file__).parent.glob("*.py") if path.stem != "__init__")
    named = {name for names in _COMMENT.findall(source[0]) for name in names.split()}
    others = [name for name in there if name not in named]

    def reference(comment: re.Match[str]) -> str:
        names = others if comment[1] == "others" else comment[1].split()
        section = "### {0}\n\n```{{eval-rst}}\n.. automodule:: qkrepro.{0}\n   :members:\n```\n"
        heading = "## Others\n\n" if comment[1] == "others" and others else ""
        return heading + "\n".join(section.format(name) for name in names)

    source[0] = _COMMENT.sub(reference, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
