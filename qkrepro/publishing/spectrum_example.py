"""What `qkrepro spectrum` prints and draws for MiniLM: the example on the page "So what for my model?"."""

import io
import subprocess
import sys
from pathlib import Path

import pandas as pd

from qkrepro.models.minilm import minilm_folder
from qkrepro.models.spectrum_columns import COLUMNS, SHOWN, columns_as_text

CHANCE_Z, CHANCE_PERCENT = 2.0, 2.5  # beyond which a head is not called a random one
COMMAND = "from qkrepro.cli.app import main; main()"


def write_spectrum_example(folder: Path) -> None:
    """Run the command on MiniLM and write `spectrum.png` and `spectrum.md` into the folder.

    Raises CheckpointError when MiniLM is not installed, subprocess.CalledProcessError when the command fails.
    """
    options = ["spectrum", str(minilm_folder()), "--format", "csv", "--plot", str(folder / "spectrum.png")]
    done = subprocess.run([sys.executable, "-c", COMMAND, *options], check=True, stdout=subprocess.PIPE, text=True)
    (folder / "spectrum.md").write_text(spectrum_page(pd.read_csv(io.StringIO(done.stdout))), encoding="utf-8")


def spectrum_page(table: pd.DataFrame) -> str:
    """Return the printed table, what its columns mean and a summary, MyST Markdown; table: as `qk_table` gives it."""
    lines = columns_as_text({str(name): values.tolist() for name, values in table.items()}, "table").splitlines()
    first = 1 + int((table["layer"] == table["layer"].iloc[0]).sum())
    heads = [f"| `{SHOWN[name]}` | `{name}` | {COLUMNS[name]} |" for name in SHOWN if name in table]
    return "\n".join(
        [
            _block(lines[:first]),
            f"::::{{dropdown}} All {len(table)} heads\n{_block(lines)}::::\n",
            "::::{dropdown} What each printed column means\n| printed | column | what it is |\n| --- | --- | --- |",
            *(row.replace("|λ|", "\\|λ\\|").replace("|λ − mean|", "\\|λ − mean\\|") for row in heads),
            f"::::\n\n{summary(table)}\n",
        ]
    )


def summary(table: pd.DataFrame) -> str:
    """Return a table of how many heads differ from random ones, and how far from concentrated they are, in Markdown."""
    beyond = table["trace_z"].abs() > CHANCE_Z
    closer = table["relative_variance_percentile"] < CHANCE_PERCENT
    rows = {
        "heads": len(table),
        f"with a trace above chance, `z` > {CHANCE_Z:g}": int((beyond & (table["trace"] > 0)).sum()),
        f"with a trace below chance, `z` < −{CHANCE_Z:g}": int((beyond & (table["trace"] < 0)).sum()),
        f"more concentrated than random heads, `spread %` < {CHANCE_PERCENT:g}": int(closer.sum()),
        "smallest `relative_variance`; equal eigenvalues have 0": f"{table['relative_variance'].min():.2g}",
    }
    return "\n".join(["| MiniLM | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def _block(lines: list[str]) -> str:
    return "```text\n" + "\n".join(lines) + "\n```\n"
