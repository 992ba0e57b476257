"""Sphinx extension: two comments that a page may hold become generated reference.

`<!-- modules: NAME NAME -->`: a section for every module of these rooms, or for a module below the package itself;
`NAME[a-k]` takes those that begin with one of these letters, for a room that is too large for one page.
`<!-- front door -->`: a table of what `import qkrepro as qk` gives, with a link to each.
"""

import inspect
import pkgutil
import re
from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sphinx.application import Sphinx

import qkrepro

_MODULES = re.compile(r"<!-- modules: ([\w\[\]\- ]+) -->")
_FRONT_DOOR = "<!-- front door -->"
_MARKUP = re.compile(r"([*_|\\$<\[])")


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    text = _MODULES.sub(lambda comment: "\n".join(_reference(name) for name in comment[1].split()), source[0])
    source[0] = text.replace(_FRONT_DOOR, _front_door()) if _FRONT_DOOR in text else text


def _reference(name: str) -> str:
    room, _, letters = name.partition("[")
    spec = find_spec(f"qkrepro.{room}")
    if spec is None:
        raise ValueError(f"modules must name a room or a module of qkrepro, got {room!r}")
    modules = [module.name for module in pkgutil.iter_modules(spec.submodule_search_locations or [])]
    inside = [f"{room}.{module}" for module in modules if fnmatch(module, f"[{letters}*" if letters else "*")]
    section = "## {0}\n\n```{{eval-rst}}\n.. automodule:: qkrepro.{0}\n   :members:\n```\n"
    return "\n".join(section.format(module) for module in inside or [room])


def _front_door() -> str:
    rows = []
    for name in sorted(qkrepro.__all__, key=str.casefold):
        value = getattr(qkrepro, name)
        if isinstance(value, str):  # the version
            continue
        import_module(value.__module__)
        link = f"{{py:obj}}`qk.{name} <{value.__module__}.{name}>`"
        rows.append(f"| {link} | {_plain((inspect.getdoc(value) or '').partition(chr(10))[0])} |")
    return "\n".join(["| name | what it is |", "| --- | --- |", *rows, ""])


def _plain(line: str) -> str:
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(part if part.startswith("`") else _MARKUP.sub(r"\\\1", part) for part in parts)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hook."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
