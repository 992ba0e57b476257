"""Records of runs as tidy tables: what a sweep has, what of it is not run, and the small live runs of the chapters.

Nothing here computes anything new; every number is one that a run wrote. Source: book, "LocAteR", "Sweeps".
"""

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from qkrepro.training.concentration import with_concentration
from qkrepro.training.configuration import RunConfiguration, settings
from qkrepro.training.corpus import zipf_probabilities
from qkrepro.training.loop import train
from qkrepro.training.records import find_records, is_recorded, read_arrays, read_records, read_run, read_runs
from qkrepro.training.sweep import read_sweep

NOT_RUN, RECORDED = "not run", "recorded"
MEASURED = (
    *("valid_loss", "valid_perplexity", "valid_entropy", "valid_entropy_last", "nonsaturated", "nonsaturated_last"),
    *("nonsaturated_predicted", "gradient_mass", "gradient_mass_last", "trace", "trace_square", "frobenius"),
    *("spectral_norm", "eigen_mean", "eigen_variance", "concentration", "walk_concentration"),
)
SUMMARY = (
    *("best_update", "best_epoch", "last_epoch", "test_loss", "test_perplexity"),
    *("corpus", "corpus_entropy", "corpus_words"),
)
CURVES = ("update", "epoch", "tokens", "train_loss", "penalty", "corpus", "corpus_entropy", "corpus_words")

# The small run that chapters make while they are executed, about a second of one core. In float64, because training
# amplifies the last bits of its numbers: in float32 two processors part by per cents, in float64 they print the same.
LIVE = RunConfiguration(
    vocabulary=32,
    d_model=24,
    d_ff=24,
    dropout=0.0,
    length=32,
    batch=32,
    epochs=2.5,
    learning_rate=0.02,
    warmup=100,
    evaluate_every=24,
    valid_tokens=2048,
    measured_sequences=8,
    precision="float64",
)


@dataclass(frozen=True)
class RunTables:
    """Runs as tables. The tables of no run are empty, with the columns that the book uses.

    summary: one row per run: `run` (its identity), configuration, corpus (`corpus_words`; `corpus_entropy` in nats a
    token where it is known), what was measured at the best checkpoint, with `test_perplexity`, and the
    `last_epoch` that was evaluated.
    curves: one row per evaluation, columns of metrics.csv (results/README.md) beside run and configuration.
    arrays: content of spectrum.npz by run.
    """

    summary: pd.DataFrame
    curves: pd.DataFrame
    arrays: Mapping[str, Mapping[str, np.ndarray[Any, Any]]]

    def eigenvalues(self, by: Sequence[str] = ("seed", "kappa")) -> pd.DataFrame:
        """Return one row per eigenvalue: run, columns `by` of the summary, update, epoch, layer, head, real, imag.

        The d_head eigenvalues of each head that can differ from zero.
        """
        names = {"real": "eigenvalues", "imag": "eigenvalues"}
        table = self._tidy(names, by, "number").drop(columns="number")
        values = table["real"].to_numpy(complex)
        return table.assign(real=values.real, imag=values.imag)

    def profiles(self, by: Sequence[str] = ("seed", "kappa")) -> pd.DataFrame:
        """Return one row per key of the last query: run, `by`, update, epoch, layer, head, location (0, 1], profiles.

        nonsaturated, predicted: shares of sequences; gradient: A(1 − A); attention: A; means over sequences.
        """
        names = {name: f"{name}_profile" for name in ("nonsaturated", "predicted", "gradient", "attention")}
        table = self._tidy(names, by, "location")
        length = table.groupby("run")["location"].transform("max") + 1
        return table.assign(location=(table["location"] + 1) / length)

    def _tidy(self, names: Mapping[str, str], by: Sequence[str], last: str) -> pd.DataFrame:
        """Return arrays (evaluations, layers, heads, n) with their indices as columns; names: array by column."""
        columns = ["run", *by, "update", "epoch", "layer", "head", last, *names]
        tables = [pd.DataFrame(columns=columns)]
        epochs = self.curves.set_index(["run", "update"])["epoch"]
        for _, row in self.summary.iterrows():
            arrays = self.arrays[row["run"]]
            shape = arrays[next(iter(names.values()))].shape
            update, layer, head, number = (index.ravel() for index in np.indices(shape))
            updates = arrays["update"][update]
            columns_of_run: dict[str, Any] = {"run": row["run"], **{name: row[name] for name in by}, "update": updates}
            columns_of_run |= {"epoch": epochs[row["run"]].loc[arrays["update"]].to_numpy()[update]}
            columns_of_run |= {"layer": layer, "head": head, last: number}
            tables.append(pd.DataFrame(columns_of_run | {name: arrays[array].ravel() for name, array in names.items()}))
        return pd.concat(tables[1:] or tables, ignore_index=True)


@dataclass(frozen=True)
class SweepTables(RunTables):
    """What is recorded of a sweep file, and what is not.

    planned: one row per run of the file, in its order: the entries that vary, `run` (identity, "" where not run) and
    `state`, "recorded" or "not run". Records in the folder that are no run of the file are left out of all tables.
    vocabulary: the words that the file keeps; None for all of the corpus.
    """

    name: str
    planned: pd.DataFrame
    vocabulary: int | None

    @property
    def command(self) -> str:
        """The command that runs what is missing; DIR holds the text of WikiText-2."""
        return f"qkrepro sweep results/{self.name}.yaml --data DIR"

    @property
    def missing(self) -> pd.DataFrame:
        """The rows of `planned` that are not run, with the command that completes them."""
        rows = self.planned[self.planned["state"] == NOT_RUN].drop(columns="run")
        return rows.assign(command=self.command).reset_index(drop=True)


def sweep_tables(path: str | Path) -> SweepTables:
    """Return the tables of a sweep file NAME.yaml from the records in the folder NAME beside it; it needs no corpus.

    Raises RunError for a file that is no sweep or a damaged record, ArgumentError for an entry that is not allowed.
    """
    path = Path(path)
    runs, records = read_sweep(path), {folder: read_run(folder) for folder in _records(path.with_suffix(""))}
    folders = [
        next((folder for folder, run in records.items() if _is_run_of(planned_run, run)), None) for planned_run in runs
    ]
    entries = pd.DataFrame([asdict(planned_run) for planned_run in runs])
    varied = [name for name in entries if len({str(value) for value in entries[name]}) > 1]
    planned = entries[varied].assign(
        run=[records[folder]["identity"] if folder else "" for folder in folders],
        state=[RECORDED if folder else NOT_RUN for folder in folders],
    )
    tables = _tables([folder for folder in folders if folder])
    return SweepTables(tables.summary, tables.curves, tables.arrays, path.stem, planned, runs[0].vocabulary)


def sweep_overview(sweeps: Iterable[SweepTables]) -> pd.DataFrame:
    """Return one row per sweep, with the command that completes it ("" when it is whole).

    Columns: sweep, vocabulary, runs, recorded, not run, completed by.
    """
    rows = []
    for sweep in sweeps:
        recorded = int((sweep.planned["state"] == RECORDED).sum())
        state = {"sweep": sweep.name, "runs": len(sweep.planned), "recorded": recorded}
        whole = recorded == len(sweep.planned)
        rows.append(state | {"not run": len(sweep.planned) - recorded, "completed by": "" if whole else sweep.command})
    return pd.DataFrame(rows)


def live_runs(configurations: Iterable[RunConfiguration]) -> RunTables:
    """Train these now, one after another, in a folder that is removed afterwards; seconds when they are small.

    Prints nothing. Equal configurations give equal tables on the same machine. Raises as `qkrepro.training.loop.train`
    does.
    """
    with tempfile.TemporaryDirectory(prefix="qkrepro-") as scratch:
        return _tables([train(configuration, scratch, progress=False) for configuration in configurations])


def perplexity_floor(tables: RunTables) -> float:
    """Return the least perplexity a model can reach on the corpus of these runs; NaN where its entropy is not known."""
    known = tables.summary["corpus_entropy"].dropna().unique()
    return math.exp(float(known[0])) if len(known) == 1 else math.nan


def frequency_perplexity(tables: RunTables) -> float:
    """Return the unigram perplexity on the synthetic corpus; NaN on another corpus."""
    if math.isnan(perplexity_floor(tables)):
        return math.nan
    frequencies = zipf_probabilities(int(tables.summary["corpus_words"].iloc[0]))
    return math.exp(float(torch.special.entr(frequencies).sum()))


def vocabulary_name(tables: RunTables) -> str:
    """Return what a caption says of the words of these runs, such as "full vocabulary (33,278 words)".

    Of a sweep without a record: what its file asks for, "full vocabulary" without the number. "not run" for no runs.
    """
    if not tables.summary.empty:
        row = tables.summary.iloc[0]
        reduced, words = bool(row["corpus_reduced_vocabulary"]), f" ({int(row['corpus_words']):,} words)"
    elif isinstance(tables, SweepTables):
        reduced, words = tables.vocabulary is not None, f" ({tables.vocabulary:,} words)" if tables.vocabulary else ""
    else:
        return NOT_RUN
    return f"{'reduced' if reduced else 'full'} vocabulary{words}"


def _records(folder: str | Path) -> list[Path]:
    here = any(is_recorded(path.parent) for path in Path(folder).rglob("run.json"))
    return find_records(folder) if here else []


def _is_run_of(configuration: RunConfiguration, run: Mapping[str, Any]) -> bool:
    """Return whether a record is of this configuration, with a corpus of this name, which need not be here."""
    same: bool = settings(configuration) == run["configuration"]
    return same and str(run["corpus"]["name"]).startswith(Path(configuration.corpus).name)


def _tables(folders: Sequence[Path]) -> RunTables:
    entries = ["run", *(field.name for field in fields(RunConfiguration))]
    if not folders:
        summary = pd.DataFrame(columns=list(dict.fromkeys([*entries, *SUMMARY, *MEASURED])))
        return RunTables(summary, pd.DataFrame(columns=list(dict.fromkeys([*entries, *CURVES, *MEASURED]))), {})
    summary = with_concentration(pd.concat([read_runs(folder) for folder in folders], ignore_index=True))
    curves = with_concentration(pd.concat([read_records(folder) for folder in folders], ignore_index=True))
    last = curves.groupby("run")["epoch"].max().rename("last_epoch")
    arrays = {read_run(folder)["identity"]: read_arrays(folder) for folder in folders}
    return RunTables(summary.join(last, on="run"), curves, arrays)


def progress(sweep: SweepTables) -> str:
    """Return how much of a sweep is recorded, "6 of 15 runs", and the command for the rest."""
    done = len(sweep.summary)
    sentence = f"{done} of {len(sweep.planned)} runs recorded"
    return sentence if done == len(sweep.planned) else f"{sentence}; the rest is completed by {sweep.command}"
