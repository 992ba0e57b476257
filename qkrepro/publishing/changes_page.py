"""The page on what changed since the first edition: one row per verdict, before and after, and why.

`book/first_edition.csv` holds the verdicts of the first edition and, written by a person, the reason for each change.
The verdict now is computed; the build fails when one differs from before and nobody has said why.
"""

from pathlib import Path

import pandas as pd

from qkrepro.errors import SiteError
from qkrepro.publishing.claims_pages import table_cell

FIRST_EDITION = "book/first_edition.csv"
NEW, GONE = "new", "no longer a claim"


def changed_since_the_first_edition(root: Path, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return one row per claim of either edition: claim, statement, before, after, because, reason.

    verdicts: as `claims_pages.verdicts` returns them. A claim that the file does not name is new, which is its reason.
    Raises SiteError for a verdict that changed or went without a reason in `book/first_edition.csv`.
    """
    first = pd.read_csv(root / FIRST_EDITION, dtype=str, keep_default_na=False).set_index("claim")
    now = verdicts.set_index("claim")
    names = [*now.index, *(name for name in first.index if name not in now.index)]
    table = pd.DataFrame(
        {
            "claim": names,
            "statement": [now["statement"].get(name, first["statement"].get(name, "")) for name in names],
            "before": [first["outcome"].get(name, NEW) or NEW for name in names],
            "after": [now["outcome"].get(name, GONE) for name in names],
            "reason": [first["reason"].get(name, "Not in the first edition.") for name in names],
        }
    )
    silent = table[(table["before"] != table["after"]) & (table["reason"] == "")]
    if len(silent):
        raise SiteError(f"{FIRST_EDITION} gives no reason for {', '.join(silent['claim'])}")
    return table


def changes_page(table: pd.DataFrame) -> str:
    """Return the table as MyST Markdown: changed verdicts first, then those that stand."""
    moved = table["before"] != table["after"]
    lines = ["| claim | before | now | why |", "| --- | --- | --- | --- |"]
    for _, row in pd.concat([table[moved], table[~moved]]).iterrows():
        statement = table_cell(row["statement"])
        link = statement if row["after"] == GONE else f"{statement} ({{ref}}`its rule <claim-{row['claim']}>`)"
        lines.append(
            f"| {link} | {row['before']} | **{row['after']}** | {table_cell(row['reason'])} |".replace("\n", " ")
        )
    return "\n".join(lines) + "\n"
