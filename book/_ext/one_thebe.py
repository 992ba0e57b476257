"""Sphinx extension: the scripts of sphinx-thebe once on a page that has a kernel to talk to, else not at all.

sphinx-thebe 0.3 declares its constants twice when the theme asks for it too, an error in the browser's console.
"""

from typing import Any

from sphinx.application import Sphinx


def _once(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    wanted = bool(app.config.html_theme_options.get("launch_buttons", {}).get("thebe"))
    kept, seen = [], set()
    for script in context.get("script_files", []):
        what = script.attributes.get("body") or str(script.filename)
        if "thebe" in what.lower() and (not wanted or what in seen):
            continue
        seen.add(what)
        kept.append(script)
    context["script_files"] = kept


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook."""
    app.connect("html-page-context", _once, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
