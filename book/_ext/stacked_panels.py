"""Sphinx extension: a picture that says where it can be cut says so in the page too, for narrow screens.

The package keeps the cuts in the text of a PNG file (`qkrepro.evidence.panels`); `panels.js` shows the pieces.
"""

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from sphinx.application import Sphinx

from qkrepro.evidence.panels import KEY

_PICTURE = re.compile(r'<img (?=[^>]*src="[^"]*/_images/([^"/]+[.]png)")')


def _mark(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    files = {name: Path(app.srcdir) / uri for uri, name in getattr(app.builder, "images", {}).items()}

    def marked(tag: re.Match[str]) -> str:
        cuts = _cuts(files[tag[1]]) if tag[1] in files else ""
        return f'<img data-panels="{escape(cuts)}" ' if cuts else tag[0]

    if "body" in context:
        context["body"] = _PICTURE.sub(marked, context["body"])


def _cuts(path: Path) -> str:
    """Return the cuts with the size of the picture, as a script reads them."""
    with Image.open(path) as picture:
        found = picture.info.get(KEY)
        return json.dumps(json.loads(found) | {"size": picture.size}, separators=(",", ":")) if found else ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("html-page-context", _mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
