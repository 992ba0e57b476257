"""Sphinx extension: the role {verdict}`claim: outcome`, by which a sentence names the verdict that it was written for.

It shows the outcome, with the cases in which the claim holds where its rule counts them, and leads to the claim. When
the computed verdict is another one, the build fails with the sentence's place: somebody has to write the sentence anew.
"""

import csv
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

LOGGER = logging.getLogger(__name__)
STORED = "book/generated/verdicts.csv"


class VerdictRole(SphinxRole):
    """Text of the form `claim: outcome`."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return a badge that links to the claim; warn when the computed verdict is another one."""
        name, _, outcome = (part.strip() for part in self.text.partition(":"))
        self.env.note_dependency(STORED)
        verdicts = _verdicts(Path(self.env.srcdir) / STORED)
        row = verdicts.get(name)
        if row is None:
            message = "verdict of %r: there is no such claim; claims are %s"
            LOGGER.warning(message, name, ", ".join(verdicts) or "none yet", location=self.get_location())
            return [nodes.Text(outcome)], []
        if row["outcome"] != outcome:
            message = "this sentence was written for the verdict %r of claim %s, which now is %r"
            LOGGER.warning(message, outcome, name, row["outcome"], location=self.get_location())
        place = f" in {row['setting']}" if row.get("setting") else ""
        cases = f" ({row['holds']} of {row['of']})" if row.get("of") else ""
        link = addnodes.pending_xref(
            "",
            refdomain="std",
            reftype="ref",
            reftarget=f"claim-{name}",
            refexplicit=True,
            refwarn=True,
            refdoc=self.env.docname,
        )
        link += nodes.inline("", f"{row['outcome']}{place}{cases}")
        kind = f"verdict-{row['outcome'].replace(' ', '-')}"
        return [
            nodes.inline("", "", link, classes=["verdict", kind])
        ], []  # around the link, which replaces its content


def _verdicts(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["claim"]: row for row in csv.DictReader(file)}


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role."""
    app.add_role("verdict", VerdictRole())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
