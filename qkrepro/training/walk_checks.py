"""Walk checks of trained models as small tables, because records hold no weights: `qkrepro walk`.

They lie in `walk/NAME` beside the sweep file. checks.csv: run, seed, kappa, moment ("start" or "best checkpoint"),
quantity (a name of `theory.walk_statistics.walk_checks`, or one of LAWS for its total variation from the measured
profile), tokens, walk (of drawn walks). profiles.csv: run, seed, kappa, law, location (middle of a bin), share; at the
best checkpoint. Source: book, "Theory in trained models".
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import safetensors.torch
import torch
from torch import Generator, Tensor

from qkrepro.errors import RunError
from qkrepro.files import write_atomically
from qkrepro.models.transformer import LanguageModel, QKWeights
from qkrepro.theory.statistics import bin_middles, total_variation
from qkrepro.theory.walk_statistics import (
    increment_correlation,
    normal_share,
    open_share,
    variance_growth,
    walk_checks,
    walk_like,
)
from qkrepro.training.configuration import RunConfiguration
from qkrepro.training.corpus import load_corpus
from qkrepro.training.initial_weights import build_model
from qkrepro.training.loop import run_folder, train
from qkrepro.training.measurements import cut, measure
from qkrepro.training.records import is_recorded
from qkrepro.training.resume import BEST
from qkrepro.training.sweep import read_sweep

MEASURED = "measured"
LAWS = ("prediction", "drawn walk", "normal", "shuffled")
SEQUENCES, DRAWS, BINS, SEED = 64, 256, 16, 0
START, BEST_MOMENT = "start", "best checkpoint"
COLUMNS = {"checks": ["moment", "quantity", "tokens", "walk"], "profiles": ["law", "location", "share"]}


class Seen(NamedTuple):
    """A model of one layer, and the validation sequences on which it is looked at."""

    model: LanguageModel
    tokens: Tensor  # (sequences, T), int64


def seen_model(
    configuration: RunConfiguration, folder: str | Path | None = None, data: str | Path | None = None
) -> Seen:
    """Return the model of a run at its best checkpoint, with about `measured_sequences` validation sequences.

    folder: where `qkrepro train` worked (a committed record holds no weights); None gives the model at update 0.
    data: where WikiText-2 lies. Raises RunError when the folder has no weights, CorpusError for the corpus.
    """
    corpus = load_corpus(configuration.corpus, data, configuration.vocabulary)
    model = build_model(configuration, corpus.vocabulary)
    if folder is not None:
        weights = Path(folder) / BEST
        if not weights.is_file():
            raise RunError(f"{weights} is missing: it stands in the folder in which a run was trained")
        model.load_state_dict(safetensors.torch.load_file(weights))
    blocks = cut(corpus.valid, configuration.length, configuration.measured_sequences * configuration.length)
    return Seen(model, blocks[0].inputs)


@torch.no_grad()
def head_tokens(seen: Seen) -> Tensor:
    """Return what the first layer's query and key projections see: float64, (sequences, T, d_model)."""
    return seen.model.eval().trace(seen.tokens)[0].inputs.double()  # without dropout


@torch.no_grad()
def last_query_logits(head: QKWeights, x: Tensor) -> Tensor:
    """Return the logits of the last query over all keys, over √d_head, with biases; float64, (sequences, T)."""
    w_q, w_k, b_q, b_k = (part.double() for part in (head.w_q, head.w_k, head.b_q, head.b_k))
    query = x[:, -1].double() @ w_q.T + b_q  # (sequences, d_head)
    keys = x.double() @ w_k.T + b_k  # (sequences, T, d_head)
    logits: Tensor = torch.einsum("sh,sth->st", query, keys) / len(w_q) ** 0.5
    return logits


def profile_laws(seen: Seen, generator: Generator, draws: int) -> pd.DataFrame:
    """Return the profile of the first head's last query as measured, and as four laws of the tokens predict it.

    "prediction": the walk by the normal form at finite length, as runs record it. "drawn walk": `draws` walks of the
    same Σ. "normal": `normal_share`, no walk. "shuffled": the model's tokens after the words of all sequences have
    changed places, as if they were independent. Returns law ("measured" or one of LAWS), location in (0, 1], share.
    """
    x, head = head_tokens(seen), seen.model.qk_weights()[0]
    logits, arrays = last_query_logits(head, x), measure(seen.model, seen.tokens).arrays
    order = torch.randperm(seen.tokens.numel(), generator=generator)
    mixed = Seen(seen.model, seen.tokens.flatten()[order].view_as(seen.tokens))
    shares = {MEASURED: open_share(logits), "prediction": torch.from_numpy(arrays["predicted_profile"][0, 0])}
    shares["drawn walk"] = open_share(last_query_logits(head, walk_like(x, generator, draws)))
    shares["normal"] = normal_share(logits)
    shares["shuffled"] = open_share(last_query_logits(head, head_tokens(mixed)))
    location = [(place + 1) / x.shape[1] for place in range(x.shape[1])]
    return pd.concat(
        [pd.DataFrame({"law": law, "location": location, "share": share.tolist()}) for law, share in shares.items()],
        ignore_index=True,
    )


def law_distances(laws: pd.DataFrame) -> dict[str, float]:
    """Return the total variation between the measured profile and each of LAWS; laws: as `profile_laws` gives them."""
    shares = {law: part["share"].to_numpy() for law, part in laws.groupby("law", sort=False)}
    return {law: total_variation(shares[law], shares[MEASURED]) for law in LAWS}


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
) -> WalkTables:
    """Return the walk checks of one run's model at update 0 and at its best checkpoint, and the profiles of the latter.

    folder: where the run of this configuration was trained, on text in `data`. sequences: validation sequences that are
    looked at. draws: walks. Random numbers come from one fixed seed. Raises as `seen_model` does.
    """
    looked = replace(configuration, measured_sequences=sequences)
    generator = torch.Generator().manual_seed(SEED)
    rows: list[dict[str, Any]] = []
    for moment, where in ((START, None), (BEST_MOMENT, folder)):
        seen = seen_model(looked, where, data)
        x = head_tokens(seen)
        tokens, walk = walk_checks(x), walk_checks(walk_like(x, generator))
        rows += [{"moment": moment, "quantity": name, "tokens": tokens[name], "walk": walk[name]} for name in tokens]
        laws = profile_laws(seen, generator, draws)
        distances = law_distances(laws)
        rows += [{"moment": moment, "quantity": law, "tokens": distance} for law, distance in distances.items()]
    binned = laws.assign(location=bin_middles(laws["location"], BINS))
    profiles = binned.groupby(["law", "location"], sort=False)["share"].mean().reset_index()
    return WalkTables(pd.DataFrame(rows), profiles)


def write_walk_records(
    sweep: str | Path,
    runs: str | Path = "runs",
    data: str | Path | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Write the tables of all runs of a sweep file that are trained in RUNS/NAME; returns their folder.

    data: where WikiText-2 lies. log: takes one line per run. Files appear whole or not at all. Raises RunError when no
    run of the sweep is trained there, CorpusError for text.
    """
    path, tables_of_runs = Path(sweep), []
    torch.set_num_threads(1)  # the order of sums depends on it
    for configuration in read_sweep(path):
        corpus = load_corpus(configuration.corpus, data, configuration.vocabulary)
        folder = run_folder(configuration, corpus, Path(runs) / path.stem)
        if is_recorded(folder):
            tables_of_runs.append(_named(model_walk_tables(configuration, folder, data), configuration, folder))
            log(f"{folder.name} looked at")
    if not tables_of_runs:
        raise RunError(f"{Path(runs) / path.stem} holds no trained run of {path}; train them with qkrepro sweep")
    target = walk_folder(path)
    for name, parts in zip(COLUMNS, zip(*tables_of_runs, strict=True), strict=True):
        text = pd.concat(parts).to_csv(index=False, lineterminator="\n", float_format="%.5g")
        write_atomically(target / f"{name}.csv", text.encode())
    return target


def walk_curves(
    configuration: RunConfiguration, folder: str | Path, lags: Sequence[int], *, sequences: int = SEQUENCES
) -> pd.DataFrame:
    """Return the increments and variance of one run's tokens at the start and trained, and of a walk like the latter.

    Returns tokens ("start", "trained", "walk"), curve ("correlation": `increment_correlation` at each lag, "variance":
    `variance_growth` at each location), place (the lag, the number of the token), value. configuration, folder,
    sequences and errors as in `model_walk_tables`.
    """
    looked = replace(configuration, measured_sequences=sequences)
    seen = {"start": seen_model(looked), "trained": seen_model(looked, folder)}
    tokens = {name: head_tokens(model) for name, model in seen.items()}
    tokens["walk"] = walk_like(tokens["trained"], torch.Generator().manual_seed(SEED))
    tables = []
    for name, x in tokens.items():
        places = range(1, x.shape[1] + 1)
        curves = (("correlation", lags, increment_correlation(x, lags)), ("variance", places, variance_growth(x)))
        tables += [
            pd.DataFrame({"tokens": name, "curve": curve, "place": list(place), "value": values.tolist()})
            for curve, place, values in curves
        ]
    return pd.concat(tables, ignore_index=True)


def live_walks(
    configurations: Iterable[RunConfiguration], lags: Sequence[int], *, sequences: int = SEQUENCES, draws: int = DRAWS
) -> tuple[WalkTables, pd.DataFrame]:
    """Train these now in a folder that is removed afterwards: their tables, and their curves with run, seed, kappa.

    configurations: of the runs. lags: of `walk_curves`. sequences, draws: of `model_walk_tables`. Raises as
    `qkrepro.training.loop.train` does.
    """
    tables_of_runs = []
    with tempfile.TemporaryDirectory(prefix="qkrepro-") as scratch:
        for configuration in configurations:
            folder = train(configuration, scratch, progress=False)
            curves = walk_curves(configuration, folder, lags, sequences=sequences)
            tables = (*model_walk_tables(configuration, folder, sequences=sequences, draws=draws), curves)
            tables_of_runs.append(_named(tables, configuration, folder))
    checks, profiles, curves = (pd.concat(parts, ignore_index=True) for parts in zip(*tables_of_runs, strict=True))
    return WalkTables(checks, profiles), curves


def _named(tables: Iterable[pd.DataFrame], configuration: RunConfiguration, folder: Path) -> list[pd.DataFrame]:
    """Return the tables of a run with the columns run, seed and kappa before their own."""
    run: dict[str, Any] = {
        "run": folder.name.rsplit("-", 1)[-1],
        "seed": configuration.seed,
        "kappa": configuration.kappa,
    }
    return [table.assign(**run)[[*run, *table]] for table in tables]


def walk_folder(sweep: str | Path) -> Path:
    """Return where the tables of a sweep file lie."""
    return Path(sweep).parent / "walk" / Path(sweep).stem


def read_walk_records(sweep: str | Path) -> WalkTables:
    """Return the tables of a sweep file; empty ones when they were not written. Raises RunError for a damaged file."""
    tables = []
    for name, own in COLUMNS.items():
        path, expected = walk_folder(sweep) / f"{name}.csv", ["run", "seed", "kappa", *own]
        try:
            table = pd.read_csv(path, dtype={"run": str}) if path.is_file() else pd.DataFrame(columns=expected)
        except (ValueError, OSError) as error:
            raise RunError(f"{path} is damaged: {error}") from error
        if list(table.columns) != expected:
            raise RunError(f"{path} is damaged: its columns must be {expected}, got {list(table.columns)}")
        tables.append(table)
    return WalkTables(*tables)
