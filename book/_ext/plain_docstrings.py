"""Sphinx extension: docstrings are plain text with shapes such as (..., d_head): show them so, not as markup."""

import re

from sphinx.application import Sphinx

_MARKUP = re.compile(r"([*_|`\\])")


def _plain(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn each paragraph into a block of lines with the markup characters escaped; `code` stays code."""
    new: list[str] = []
    for line in lines:
        parts = re.split(r"(`[^`]+`)", line.rstrip())
        text = "".join(f"`{part}`" if re.fullmatch(r"`[^`]+`", part) else _MARKUP.sub(r"\\\1", part) for part in parts)
        text = re.sub(r"(?<=\w)(``[^`]+``)|(``[^`]+``)(?=\w)", r"\\ \g<0>\\ ", text)
        indent = len(text) - len(text.lstrip())
        new.append(f"| {'  ' * (indent // 4)}{text.lstrip()}" if text.strip() else "")
    lines[:] = [*new, ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("autodoc-process-docstring", _plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
