"""The claims of all chapters: their verdicts from the committed numbers, and the pages that show them."""

import pkgutil
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from qkrepro import chapters
from qkrepro.errors import ArgumentError
from qkrepro.evidence.claims import Claim, Verdict, claim_in_full, judge, outcome_word, sensitivity
from qkrepro.evidence.numbers import book_root, load_numbers, numbers_folder
from qkrepro.files import write_atomically
from qkrepro.publishing.notebooks import chapter_names
from qkrepro.publishing.threshold_figures import png_of, threshold_alternative, threshold_figure

STORED = "verdicts.csv"
_MARKUP = re.compile(r"([\\`*_\[\]<$])")


def all_claims() -> tuple[Claim, ...]:
    """Return the claims of every module of `qkrepro.chapters`, in the order of the book's table of contents."""
    order = chapter_names(book_root())
    names = [module.name for module in pkgutil.iter_modules(chapters.__path__)]
    modules = [import_module(f"qkrepro.chapters.{name}") for name in sorted(names, key=_place(order))]
    return tuple(claim for module in modules for claim in module.CLAIMS)


def _place(order: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    return lambda name: (order.index(name) if name in order else len(order), name)


def verdicts(folder: Path | None = None, of: Sequence[str] | None = None) -> pd.DataFrame:
    """Return claims (`of` these chapters; default all) with their verdicts from the committed numbers, in book order.

    A chapter without saved numbers gives "not run" and what completes it.
    """
    rows = []
    for entry in (claim for claim in all_claims() if of is None or claim.chapter in of):
        verdict = _stored_verdict(entry, folder or numbers_folder())
        rows.append(
            {
                "claim": entry.name,
                "chapter": entry.chapter,
                "provenance": entry.provenance,
                "statement": claim_in_full(entry),
                "outcome": outcome_word(entry, verdict.outcome),
                "setting": entry.setting,
                "because": verdict.because,
                "holds": verdict.holds,
                "of": verdict.of,
            }
        )
    columns = ["claim", "chapter", "provenance", "statement", "outcome", "setting", "because", "holds", "of"]
    return pd.DataFrame(rows, columns=columns).astype({"holds": "Int64", "of": "Int64"})


def _stored_verdict(entry: Claim, folder: Path) -> Verdict:
    if not (folder / f"{entry.chapter}.json").is_file():
        return Verdict("not run", _how_to_complete(entry.chapter))
    return judge(entry, load_numbers(entry.chapter, folder))


def _how_to_complete(chapter: str) -> str:
    if (book_root() / "notebooks" / f"{chapter}.ipynb").is_file():
        return f"complete it with `qkrepro figures {chapter}`"
    return "its chapter is not written yet"


def claim_link(claim: Claim) -> str:
    """Return a link with the claim's words to the place on the claims page where its rule stands, in Markdown."""
    return f"[{_plain(claim.statement)}](#claim-{claim.name})"


def _plain(text: str) -> str:
    """Return text with a backslash before every sign that means something in Markdown."""
    return _MARKUP.sub(r"\\\1", text)


def claims_page(table: pd.DataFrame, chapters_written: Sequence[str]) -> str:
    """Return the generated part of the claims page, MyST Markdown: an overview of all claims, then each one folded.

    table: as `verdicts` returns it. `chapters_written` are the chapters that exist as notebooks; only those are linked.
    """
    entries = list(zip(all_claims(), table.to_dict("records"), strict=True))
    parts = [overview(entries, chapters_written), "## Every claim, with its rule and its numbers\n"]
    for chapter in dict.fromkeys(entry.chapter for entry, _ in entries):
        parts.append(f"**{_chapter_link(chapter, chapters_written)}**\n")
        parts += [_details(*pair, chapters_written) for pair in entries if pair[0].chapter == chapter]
    return "\n".join(parts)


def overview(entries: Sequence[tuple[Claim, Mapping[Hashable, Any]]], chapters_written: Sequence[str]) -> str:
    """Return one table of these claims and their rows of `verdicts`, MyST Markdown; a script of the page filters it."""
    columns = ["claim", "chapter", "verdict", "cases that hold", "provenance"]
    rows = [
        [
            table_cell(claim_link(entry)),
            _chapter_link(entry.chapter, chapters_written),
            verdict_badge(row["outcome"]),
            cases_bar(row),
            entry.provenance,
        ]
        for entry, row in entries
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
    return ":::{table}\n:class: claims-overview\n\n" + "\n".join(lines) + "\n:::\n"


def verdict_badge(outcome: str) -> str:
    """Return an outcome as HTML that looks as the role `verdict` does, without a link."""
    return f'<span class="verdict verdict-{outcome.replace(" ", "-")}">{outcome}</span>'


def cases_bar(row: Mapping[Hashable, Any]) -> str:
    """Return "k of n" with a bar as HTML, from a row of `verdicts`; a dash where the rule counts no cases."""
    if pd.isna(row["of"]):
        return "–"
    share = row["holds"] / row["of"]
    return f'<span class="cases" style="--share: {share:.0%}">{row["holds"]} of {row["of"]}</span>'


def _chapter_link(chapter: str, chapters_written: Sequence[str]) -> str:
    return f"{{doc}}`../notebooks/{chapter}`" if chapter in chapters_written else "not written yet"


def _details(entry: Claim, row: Mapping[Hashable, Any], chapters_written: Sequence[str]) -> str:
    """One claim folded, with its verdict in the line that is always there."""
    written = entry.chapter in chapters_written
    place = f" in {entry.setting}" if entry.setting else ""
    lines = {
        "claim": claim_in_full(entry),
        "verdict": f"**{row['outcome']}**{place}",
        "numbers": row["because"],
        "provenance": entry.provenance,
        "rule": entry.rule,
        "refuted by": entry.refuted_by,
        "chapter": _chapter_link(entry.chapter, chapters_written),
        "figure": f"{{numref}}`{entry.figure}`" if written and entry.figure else "none yet",
        "recompute": f"`qkrepro figures {entry.chapter} --force`" if written else "nothing to run yet",
    }
    quote = f'> "{entry.quote}" (abstract, {{cite}}`bao2024self`)\n\n' if entry.quote else ""
    first, *rest = (f"| {name} | {table_cell(value)} |" for name, value in lines.items())
    body = "\n".join([first, "| --- | --- |", *rest])
    head = f"::::{{dropdown}} {_plain(entry.statement)} {verdict_badge(row['outcome'])}\n:name: claim-{entry.name}\n"
    return f"{head}:class-container: claim\n\n{quote}{body}\n{_threshold(entry)}::::\n"


def write_threshold_figures(folder: Path) -> None:
    """Draw how the verdict of each claim moves with its threshold, as PNG files in `folder`."""
    for claim in all_claims():
        if claim.threshold and (table := _sensitivity(claim)) is not None:
            (folder / f"threshold-{claim.name}.png").write_bytes(png_of(threshold_figure(claim, table)))


def _sensitivity(claim: Claim) -> pd.DataFrame | None:
    if claim.threshold is None or not (numbers_folder() / f"{claim.chapter}.json").is_file():
        return None
    return sensitivity(claim, load_numbers(claim.chapter))


def _threshold(claim: Claim) -> str:
    """The picture of a claim's threshold in Markdown, with what it shows in words; nothing without a threshold."""
    table = _sensitivity(claim)
    if claim.threshold is None or table is None:
        return ""
    words = threshold_alternative(claim, table)
    image = f":::{{image}} generated/threshold-{claim.name}.png\n:alt: {words}\n:width: 100%\n:class: threshold\n:::"
    return f"\n{image}\n\n{words}\n"


def table_cell(text: str) -> str:
    """Return the text for a cell of a Markdown table, where a bar would end the cell."""
    return text.replace("|", "\\|")


def changed_verdicts(table: pd.DataFrame, folder: Path | None = None) -> list[str]:
    """Return the names of the claims whose stored verdict no longer follows from the data.

    Verdicts are stored in `book/generated/verdicts.csv`.
    """
    path = (folder or book_root() / "book" / "generated") / STORED
    if not path.is_file():
        raise ArgumentError(f"{path} is missing; write it with `qkrepro claims --write`")
    stored = pd.read_csv(path, dtype=str).set_index("claim")
    current = table.set_index("claim")[["outcome", "setting", "because", "holds", "of"]].astype("string")
    names = current.index.union(stored.index, sort=False)
    same = current.reindex(names).fillna("").eq(stored.reindex(names).fillna("").astype("string")).all(axis=1)
    return [str(name) for name in names[~same]]


def write_pages(folder: Path | None = None) -> list[Path]:
    """Write `claims.md` and the stored `verdicts.csv` to `book/generated`, or to `folder`."""
    root = book_root()
    target = folder or root / "book" / "generated"
    written = [path.stem for path in (root / "notebooks").glob("*.ipynb")]
    table = verdicts()
    stored = table[["claim", "outcome", "setting", "because", "holds", "of"]].to_csv(index=False, lineterminator="\n")
    pages = {"claims.md": claims_page(table, written), STORED: stored}
    for name, text in pages.items():
        write_atomically(target / name, text.encode())
    return [target / name for name in pages]
