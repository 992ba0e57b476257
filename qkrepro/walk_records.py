"""The walk checks of a sweep's trained models as small tables, because records hold no weights: `qkrepro walk`.

They lie in `walk/NAME` beside the sweep file. checks.csv: run, seed, kappa, moment ("start" or "best checkpoint"),
quantity (one of CHECKS, or of LAWS for its total variation from the measured profile), tokens, walk (of drawn walks).
profiles.csv: run, seed, kappa, law, location (middle of a bin), share; at the best checkpoint.
Source: book, "Theory in trained models".
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from qkrepro.configuration import RunConfiguration
from qkrepro.corpus import load_corpus
from qkrepro.errors import RunError
from qkrepro.results import is_recorded, write_atomically
from qkrepro.sweep import read_sweep
from qkrepro.trained_profiles import bin_middles
from qkrepro.training import run_folder, train
from qkrepro.walk_checks import (
    head_tokens,
    increment_correlation,
    law_distances,
    profile_laws,
    seen_model,
    variance_growth,
    walk_checks,
    walk_like,
)

SEQUENCES, DRAWS, BINS, SEED = 64, 256, 16, 0
START, BEST = "start", "best checkpoint"
FILES = ("checks", "profiles")


class WalkTables(NamedTuple):
    """Tables of checks and of profiles; empty where nothing is recorded."""

    checks: pd.DataFrame
    profiles: pd.DataFrame


def model_walk_tables(
    configuration: RunConfiguration,
    folder: str | Path,
    data: str | Path | None = None,
    *,
    sequences: int = SEQUENCES,
    draws: int = DRAWS,
    bins: int = BINS,
) -> WalkTables:
    """Walk checks of one run's model at update 0 and at its best checkpoint, and the profiles of the latter.

    folder: where the run was trained. sequences: validation sequences that are looked at. draws: walks. Random numbers
    come from one fixed seed. Raises as `walk_checks.seen_model` does.
    """
    looked = replace(configuration, measured_sequences=sequences)
    generator = torch.Generator().manual_seed(SEED)
    rows: list[dict[str, Any]] = []
    for moment, where in ((START, None), (BEST, folder)):
        seen = seen_model(looked, where, data)
        x = head_tokens(seen)
        tokens, walk = walk_checks(x), walk_checks(walk_like(x, generator))
        rows += [{"moment": moment, "quantity": name, "tokens": tokens[name], "walk": walk[name]} for name in tokens]
        laws = profile_laws(seen, generator, draws)
        rows += [{"moment": moment, "quantity": law, "tokens": found} for law, found in law_distances(laws).items()]
    binned = laws.assign(location=bin_middles(laws["location"], bins))
    profiles = binned.groupby(["law", "location"], sort=False)["share"].mean().reset_index()
    return WalkTables(pd.DataFrame(rows), profiles)


def write_walk_records(
    sweep: str | Path,
    runs: str | Path = "runs",
    data: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the tables of all runs of a sweep file that are trained in RUNS/NAME; returns their folder.

    Files appear whole or not at all. Raises RunError when no run of the sweep is trained there, CorpusError for text.
    """
    path, found = Path(sweep), []
    torch.set_num_threads(1)  # the order of sums depends on it
    for each in read_sweep(path):
        corpus = load_corpus(each.corpus, data, each.vocabulary)
        folder = run_folder(each, corpus, Path(runs) / path.stem)
        if is_recorded(folder):
            tables = model_walk_tables(each, folder, data)
            named = {"run": folder.name.rsplit("-", 1)[-1], "seed": each.seed, "kappa": each.kappa}
            found.append([pd.DataFrame([named] * len(table)).join(table) for table in tables])
            say(f"{folder.name} looked at")
    if not found:
        raise RunError(f"{Path(runs) / path.stem} holds no trained run of {path}; train them with qkrepro sweep")
    target = walk_folder(path)
    for name, parts in zip(FILES, zip(*found, strict=True), strict=True):
        text = pd.concat(parts).to_csv(index=False, lineterminator="\n", float_format="%.5g")
        write_atomically(target / f"{name}.csv", text.encode())
    return target


def walk_curves(
    configuration: RunConfiguration, folder: str | Path, lags: Sequence[int], *, sequences: int = SEQUENCES
) -> pd.DataFrame:
    """Increments and variance of one run's tokens at the start and trained, and of a walk like the latter.

    Returns tokens ("start", "trained", "walk"), curve ("correlation": `increment_correlation` at each lag, "variance":
    `variance_growth` at each location), place (the lag, the number of the token), value. Arguments and errors as in
    `model_walk_tables`.
    """
    looked = replace(configuration, measured_sequences=sequences)
    seen = {"start": seen_model(looked), "trained": seen_model(looked, folder)}
    tokens = {name: head_tokens(each) for name, each in seen.items()}
    tokens["walk"] = walk_like(tokens["trained"], torch.Generator().manual_seed(SEED))
    tables = []
    for name, x in tokens.items():
        curves = {"correlation": increment_correlation(x, lags), "variance": variance_growth(x)}
        places = {"correlation": list(lags), "variance": list(range(1, x.shape[1] + 1))}
        tables += [
            pd.DataFrame({"tokens": name, "curve": curve, "place": places[curve], "value": values.tolist()})
            for curve, values in curves.items()
        ]
    return pd.concat(tables, ignore_index=True)


def live_walks(
    configurations: Iterable[RunConfiguration], lags: Sequence[int], *, sequences: int = SEQUENCES, draws: int = DRAWS
) -> tuple[WalkTables, pd.DataFrame]:
    """Train these now in a folder that is removed afterwards: their tables, and their curves with run, seed, kappa.

    Raises as `qkrepro.training.train` does.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="qkrepro-") as scratch:
        for each in configurations:
            folder = train(each, scratch, progress=False)
            named = {"run": folder.name.rsplit("-", 1)[-1], "seed": each.seed, "kappa": each.kappa}
            curves = walk_curves(each, folder, lags, sequences=sequences)
            tables = (*model_walk_tables(each, folder, sequences=sequences, draws=draws), curves)
            found.append([pd.DataFrame([named] * len(table)).join(table) for table in tables])
    checks, profiles, curves = (pd.concat(parts, ignore_index=True) for parts in zip(*found, strict=True))
    return WalkTables(checks, profiles), curves


def walk_folder(sweep: str | Path) -> Path:
    """Where the tables of a sweep file lie."""
    return Path(sweep).parent / "walk" / Path(sweep).stem


def read_walk_records(sweep: str | Path) -> WalkTables:
    """The tables of a sweep file; empty ones when they were not written. Raises RunError for a damaged file."""
    columns = (["moment", "quantity", "tokens", "walk"], ["law", "location", "share"])
    tables = []
    for name, own in zip(FILES, columns, strict=True):
        path, expected = walk_folder(sweep) / f"{name}.csv", ["run", "seed", "kappa", *own]
        try:
            table = pd.read_csv(path, dtype={"run": str}) if path.is_file() else pd.DataFrame(columns=expected)
        except (ValueError, OSError) as error:
            raise RunError(f"{path} is damaged: {error}") from error
        if list(table.columns) != expected:
            raise RunError(f"{path} is damaged: its columns are {list(table.columns)}; allowed: {expected}")
        tables.append(table)
    return WalkTables(*tables)
