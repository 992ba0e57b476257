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
        """Return a badge that links to the claim."""
        name, _, outcome = (part.strip() for part in self.text.partition(":"))
        row = _verdicts(Path(self.env.srcdir) / STORED).get(name)
        if row is None:
            LOGGER.warning("the verdict of %r is named, and there is no such claim", name, location=self.get_location())
            return [nodes.Text(outcome)], []
        if row["outcome"] != outcome:
            told = "this sentence was written for %r of claim %s; the verdict now is %r"
            LOGGER.warning(told, outcome, name, row["outcome"], location=self.get_location())
        self.env.note_dependency(STORED)
        cases = f" ({row['holds']} of {row['of']})" if row.get("of") else ""
        kind = f"verdict-{row['outcome'].replace(' ', '-')}"
        link = addnodes.pending_xref(
            "",
            refdomain="std",
            reftype="ref",
            reftarget=f"claim-{name}",
            refexplicit=True,
            refwarn=True,
            refdoc=self.env.docname,
        )
        link += nodes.inline("", f"{row['outcome']}{cases}", classes=["verdict", kind])
        return [link], []


def _verdicts(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["claim"]: row for row in csv.DictReader(file)}


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role."""
    app.add_role("verdict", VerdictRole())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
