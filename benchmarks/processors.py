"""How far executions of the book on several processors are from one another, for the page on reproducing it.

    make notebooks; cp -r _build/reexecuted DIR          # on a machine, or with the settings of `make processors`
    python benchmarks/processors.py --keep RECORD_DIR "RECORD" DIR "HERE" [DIR "HERE" ...]
    python benchmarks/processors.py --precision          # one small training in three precisions, with three settings

The first compares numbers of notebooks, the largest relative difference per kind of table; the second trains the small
model of the chapters. Both add their rows to `book/generated/processors.json` and write `processors.md` from it.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from agreement import EXACT, TRAINING, WEIGHTS, rule_for, tables_of  # noqa: E402

KEPT, PAGE = ROOT / "book" / "generated" / "processors.json", ROOT / "book" / "generated" / "processors.md"
KINDS = {EXACT.why: "float64, or records", WEIGHTS.why: "trained weights in float32", TRAINING.why: "small trainings"}
COLUMNS = ["what", "record", "here", *KINDS.values()]
SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
)
TRAIN = """
import sys
from dataclasses import replace
from qkrepro.training.tables import LIVE, live_runs
runs = live_runs([replace(LIVE, precision=sys.argv[1])])
print(repr(float(runs.summary["valid_perplexity"].iloc[0])))
"""
OWN = "bring_your_own_corpus"  # trains in every table
SMALLEST = 1e-6  # below this a difference is relative to it


def compared(record: Path, here: Path) -> dict[str, float]:
    """Largest relative difference between two folders of numbers, by kind of table."""
    largest = dict.fromkeys(KINDS.values(), 0.0)
    for path in sorted(record.glob("*.json")):
        old, new = tables_of(path), tables_of(here / path.name)
        for name in old.keys() & new.keys():
            kind = KINDS[TRAINING.why if "live" in name or path.stem == OWN else rule_for(path.stem, name).why]
            largest[kind] = max([largest[kind], *_differences(old[name], new[name])])
    return largest


def _differences(old: dict[str, list[Any]], new: dict[str, list[Any]]) -> Iterator[float]:
    live = [text != "live" for text in old.get("text", [])]  # the table of an older edition held both kinds of rows
    for column, values in old.items():
        for row, (before, now) in enumerate(zip(values, new[column], strict=True)):
            if isinstance(before, float) and isinstance(now, float) and (not live or live[row]):
                yield abs(now - before) / max(abs(now), abs(before), SMALLEST)


def precisions() -> pd.DataFrame:
    """The perplexity that one small training ends at, in three precisions and with three settings of instructions."""
    rows = []
    for precision in ("float64", "float32", "bf16"):
        for settings in SETTINGS:
            command = [sys.executable, "-c", TRAIN, precision]
            done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
            name = ", ".join(f"{key}={value}" for key, value in settings.items()) or "as the machine is"
            rows.append({"precision": precision, "instructions": name, "perplexity": float(done.stdout)})
    return pd.DataFrame(rows)


def write_page(kept: pd.DataFrame, trained: pd.DataFrame) -> None:
    """Both tables as MyST Markdown."""
    shown = kept.drop(columns="what").map(lambda value: f"{value:.0e}" if isinstance(value, float) else value)
    wide = trained.pivot(index="instructions", columns="precision", values="perplexity")
    order = list(dict.fromkeys(trained["instructions"]))
    wide = wide.loc[order, ["float64", "float32", "bf16"]].map("{:.6f}".format).reset_index()
    note = "One small training of the chapters, validation perplexity at its end:"
    PAGE.write_text(f"{_markdown(shown)}\n\n{note}\n\n{_markdown(wide)}\n", encoding="utf-8")


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Compare what the arguments name, keep it, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", nargs="+", metavar="DIR NAME", help="record, its name, then others with their names")
    parser.add_argument("--precision", action="store_true", help="train the small model in three precisions")
    arguments = parser.parse_args()
    content = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    kept = pd.DataFrame(content.get("executions", []), columns=COLUMNS)
    trained = pd.DataFrame(content.get("trainings", []))
    if arguments.keep:
        record, name, *others = arguments.keep
        for folder, here in zip(others[::2], others[1::2], strict=True):
            row = {"what": f"{name} / {here}", "record": name, "here": here} | compared(Path(record), Path(folder))
            kept = pd.concat([kept[kept["what"] != row["what"]], pd.DataFrame([row])], ignore_index=True)
    if arguments.precision:
        trained = precisions()
    content = {"executions": kept.to_dict("records"), "trainings": trained.to_dict("records")}
    KEPT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if len(kept) and len(trained):
        write_page(kept, trained)


if __name__ == "__main__":
    main()
