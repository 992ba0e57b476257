"""What `qkrepro spectrum` prints and draws for MiniLM: the example on the page "So what for my model?"."""

import io
import subprocess
import sys
from pathlib import Path

import pandas as pd

from qkrepro.models.minilm import minilm_folder
from qkrepro.models.spectrum_report import COLUMNS, SHOWN, columns_as_text

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
    """Return in one paragraph how many heads differ from random ones, and how far from concentrated they are."""
    beyond = table["trace_z"].abs() > CHANCE_Z
    positive = int((beyond & (table["trace"] > 0)).sum())
    closer = int((table["relative_variance_percentile"] < CHANCE_PERCENT).sum())
    return (
        f"Of the {len(table)} heads, {int(beyond.sum())} have a trace that chance does not explain (`z` beyond "
        f"{CHANCE_Z:g} or −{CHANCE_Z:g}): {positive} of them a positive one, {int(beyond.sum()) - positive} a negative "
        f"one. {closer} have a spectrum that is more concentrated, relative to its mean, than "
        f"{100 - CHANCE_PERCENT:g}% of random heads (`spread %` under {CHANCE_PERCENT:g}). None is concentrated: the "
        f"smallest `relative_variance` is {table['relative_variance'].min():.2g}, where equal eigenvalues have 0."
    )


def _block(lines: list[str]) -> str:
    return "```text\n" + "\n".join(lines) + "\n```\n"
