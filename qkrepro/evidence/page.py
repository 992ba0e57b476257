"""What a chapter does besides its mathematics: one call at its top, one at its end, and tables that fold.

    page = open_page(chapter, profile, threads=threads)
    page.table(measured, {"entropy": 2}, caption="Entropy by setting, nats")
    page.close({"entropy": measured}, {"largest": measured["entropy"].max()})

`chapter` is the module of the chapter in `qkrepro.chapters`; it defines CLAIMS. What `close` glues is cited in any page
as {glue:text}`SLUG-KEY`, and its verdicts with the role {verdict}`CLAIM: OUTCOME`, which fails the build when the
verdict is no longer that. Source: book, "Add a chapter".
"""

from collections.abc import Mapping
from html import escape
from types import ModuleType
from typing import Any

import pandas as pd

from qkrepro.evidence.claims import Claim, Tables, Verdict, judge, outcome_in_setting
from qkrepro.evidence.numbers import COMMITTED_PROFILE, changed_parameters, save_numbers, stored
from qkrepro.evidence.panels import store_panels
from qkrepro.evidence.rounding import GLUED_DIGITS, rounded, significant
from qkrepro.evidence.style import use_style

Digits = int | Mapping[str, int]


class FoldedTable:
    """A table as a page shows it: closed, with its caption as what opens it; plain text elsewhere."""

    def __init__(self, table: pd.DataFrame, caption: str, *, is_open: bool) -> None:
        """Keep a table that is rounded already."""
        self.frame, self.caption, self.is_open = table, caption, is_open

    def __repr__(self) -> str:
        """Return the caption and the table as text."""
        return f"{self.caption}\n{self.frame.to_string(index=False, na_rep='')}"

    def _repr_html_(self) -> str:
        content = self.frame.to_html(index=False, na_rep="", border=0, justify="left")
        opened = " open" if self.is_open else ""
        return f'<details class="numbers"{opened}><summary>{escape(self.caption)}</summary>{content}</details>'


class ShownVerdicts:
    """The verdicts of a chapter as its page shows them: Markdown, and a line each elsewhere."""

    def __init__(
        self, verdicts: Mapping[Claim, Verdict | None], profile: str, changed: Mapping[str, tuple[Any, Any]]
    ) -> None:
        """Keep the verdicts; None where the profile judges nothing. changed: the book's value and the one now."""
        self.verdicts, self.profile, self.changed = verdicts, profile, changed

    def __repr__(self) -> str:
        """Return name, outcome and reason of each claim."""
        lines = []
        for claim, verdict in self.verdicts.items():
            text = f"{outcome_in_setting(claim, verdict.outcome)} ({verdict.because})" if verdict else self._none()
            lines.append(f"{claim.name}: {text}{self._mark() if verdict else ''}")
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        return "\n\n".join(self._section(claim, verdict) for claim, verdict in self.verdicts.items())

    def _section(self, claim: Claim, verdict: Verdict | None) -> str:
        """Return the claim with its outcome, and folded below it what decides; a page is about its figures."""
        title, because = f"{self._none().capitalize()}.", ""
        if verdict is not None:
            kind = "Verdict of changed parameters" if self.changed else "Verdict"
            title = f"{kind}: {outcome_in_setting(claim, verdict.outcome)}."
            because = f"{verdict.because[:1].upper()}{verdict.because[1:]}{self._mark()}.\n\n"
        summary = f"<summary><strong>{escape(title)}</strong> {escape(claim.statement)}</summary>"
        conditions = f"**Tested**: {claim.conditions}.\n\n" if claim.conditions else ""
        rule = f"{conditions}**Rule** ({claim.provenance}). {claim.rule} Refuted by: {claim.refuted_by}."
        return f'<details class="numbers verdict-rule">{summary}\n\n{because}{rule}\n\n</details>'

    def _none(self) -> str:
        return f"no verdict at profile {self.profile}; verdicts rest on {COMMITTED_PROFILE}"

    def _mark(self) -> str:
        changes = ", ".join(f"{name} is {now!r} instead of {before!r}" for name, (before, now) in self.changed.items())
        return f"; of changed parameters: {changes}. The book's own verdict is on its claims page" if changes else ""


class Page:
    """A chapter while it runs; `open_page` makes it."""

    def __init__(self, chapter: ModuleType, profile: str) -> None:
        """Take the chapter's name and its claims from its module."""
        self.name = chapter.__name__.rpartition(".")[2]
        self.claims: tuple[Claim, ...] = chapter.CLAIMS
        self.profile = profile

    def table(self, table: pd.DataFrame, digits: Digits = 3, *, caption: str, is_open: bool = False) -> FoldedTable:
        """Return a folded table with its numbers rounded; `digits`: decimals, of all columns or by name.

        The index is dropped: what matters of it belongs into columns, with headers that a reader understands.
        """
        return FoldedTable(rounded(table, digits), caption, is_open=is_open)

    def close(self, tables: Tables, numbers: Mapping[str, float | str] | None = None) -> ShownVerdicts:
        """Save the tables, glue the numbers as `SLUG-KEY`, and return the verdicts of the chapter's claims for display.

        tables: tidy tables by name, as the rules read them. numbers: what the prose cites. Raises ArgumentError when a
        rule lacks a table.
        """
        save_numbers(self.name, self.profile, tables)
        for key, value in (numbers or {}).items():
            plain = value if isinstance(value, str | int) else significant(float(value), GLUED_DIGITS)
            glue(f"{self.name}-{key}", plain)
        kept, judged = stored(tables), self.profile == COMMITTED_PROFILE
        verdicts = {claim: judge(claim, kept) if judged else None for claim in self.claims}
        return ShownVerdicts(verdicts, self.profile, changed_parameters(self.name))


def glue(name: str, value: str | float) -> None:
    """Keep a value in the notebook for pages to cite by name, as `myst_nb.glue` does, whose import takes a second."""
    from IPython.core.display_functions import publish_display_data
    from IPython.core.formatters import format_display_data

    data, metadata = format_display_data(value)
    prefix = "application/papermill.record/"
    scrap = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    publish_display_data({prefix + kind: text for kind, text in data.items()}, metadata | scrap)


def open_page(chapter: ModuleType, profile: str, *, threads: int = 1) -> Page:
    """Set the threads of PyTorch and the style of figures, and return the page of a chapter.

    chapter: a module of `qkrepro.chapters`. profile: the parameter of that name. Raises AttributeError for a module
    without CLAIMS.
    """
    import torch

    torch.set_num_threads(threads)
    use_style()
    store_panels()
    return Page(chapter, profile)


def show_verdict(claim: Claim, tables: Tables, profile: str) -> ShownVerdicts:
    """Return the verdict of one claim on these tables for display; only the committed profile judges.

    Raises ArgumentError for a table that the rule needs and did not get.
    """
    verdict = judge(claim, stored(tables)) if profile == COMMITTED_PROFILE else None
    return ShownVerdicts({claim: verdict}, profile, changed_parameters(claim.chapter))
