"""Sphinx extension: docstrings are plain text with shapes such as (..., d_head): show them so, not as markup."""

import re

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


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("autodoc-process-docstring", _plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
