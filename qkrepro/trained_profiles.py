"""Does the theory see trained models: the recorded profiles of the last query against what the weights predict.

Every profile runs over the locations of the keys. Profiles are compared after each is divided by its sum, by their
total variation: 0 where they are the same, 1 where they share no location. Source: book, "Theory in trained models".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from qkrepro.errors import ArgumentError, ShapeError, check_integer
from qkrepro.run_comparisons import mean_interval
from qkrepro.run_tables import RunTables

PROFILES = ("nonsaturated", "predicted", "gradient")  # measured, from the weights, A(1 − A)
SMOOTHING = 16  # windows in a sequence: over so many the measured shares are averaged to estimate their noise
DISTANCES = ("total_variation", "mirrored_variation", "gradient_variation", "noise")
AGREEMENT = (*DISTANCES, *(f"{what}_{name}" for what in ("centre", "level") for name in PROFILES))


def total_variation(first: ArrayLike, second: ArrayLike) -> float:
    """½ Σ |p − q| between two profiles, (n,) each, non-negative, divided by their sums: 0 equal, 1 disjoint.

    Raises ShapeError when they differ in shape, ArgumentError for a negative value or a sum of 0.
    """
    profiles = [np.asarray(values, dtype=np.float64) for values in (first, second)]
    if profiles[0].shape != profiles[1].shape or profiles[0].ndim != 1:
        raise ShapeError(f"profiles have shapes {profiles[0].shape} and {profiles[1].shape}; allowed: two equal (n,)")
    for profile in profiles:
        if not (profile >= 0).all() or not profile.sum() > 0:
            raise ArgumentError(f"profile has sum {profile.sum():g}; allowed: values >= 0, not all of them 0")
    return float(np.abs(profiles[0] / profiles[0].sum() - profiles[1] / profiles[1].sum()).sum() / 2)


def sampling_noise(shares: ArrayLike, sequences: int) -> float:
    """Expected total variation between the profile `shares`, (n,) in [0, 1], and itself counted in `sequences` draws.

    Exact per location (binomial), without the small effect of dividing by a random sum: what agreement no prediction
    can beat. Raises ArgumentError for sequences < 1 or shares outside [0, 1].
    """
    check_integer("sequences", sequences, at_least=1)
    share = np.asarray(shares, dtype=np.float64)
    if share.ndim != 1 or not ((share >= 0) & (share <= 1)).all() or not share.sum() > 0:
        raise ArgumentError("shares must be (n,) in [0, 1], not all of them 0")
    hits = np.arange(sequences + 1)[:, None]  # (sequences + 1, 1)
    weights = stats.binom.pmf(hits, sequences, share)  # (sequences + 1, n)
    deviation = (weights * np.abs(hits / sequences - share)).sum(0)  # (n,), E|share found − share|
    return float(deviation.sum() / (2 * share.sum()))


def profile_agreement(tables: RunTables, by: Sequence[str] = ("seed", "kappa")) -> pd.DataFrame:
    """How well prediction and measurement agree: one row a run, evaluation, layer and head.

    Columns: run, `by`, update, epoch, layer, head; total_variation (predicted against measured share of keys that are
    not saturated), mirrored_variation (the prediction read from the end), gradient_variation (prediction against
    A(1 − A)), noise (`sampling_noise` of the measured share); centre_ and level_ of nonsaturated, predicted, gradient:
    mean location under the profile, mean of the profile.
    """
    keys = ["run", *by, "update", "epoch", "layer", "head"]
    profiles = tables.profiles(by=by)
    sequences = dict(zip(tables.summary["run"], tables.summary["measured_sequences"], strict=True))
    rows = []
    for values, part in profiles.groupby(keys, sort=False):
        head = dict(zip(keys, values, strict=True))
        rows.append(head | _agreement(part, int(sequences[head["run"]])))
    return pd.DataFrame(rows, columns=[*keys, *AGREEMENT]).astype(dict.fromkeys(AGREEMENT, float))


def at_best_checkpoint(table: pd.DataFrame, tables: RunTables) -> pd.DataFrame:
    """The rows of `table` (columns run, update) at the update of each run's best validation loss."""
    best = tables.summary[["run", "best_update"]].rename(columns={"best_update": "update"})
    return table.merge(best.astype({"update": table["update"].dtype}), on=["run", "update"]).reset_index(drop=True)


def trained_table(agreement: pd.DataFrame) -> pd.DataFrame:
    """The table of the verdict: kappa, seed and the four distances, means over heads; one row a run."""
    return agreement.groupby(["kappa", "seed"], as_index=False)[list(DISTANCES)].mean()


def bin_middles(location: pd.Series, bins: int) -> NDArray[Any]:
    """Middle of the bin in which each location lies, `bins` equal ones of (0, 1]. Raises ArgumentError for bins < 1."""
    check_integer("bins", bins, at_least=1)
    place = np.minimum((location.to_numpy(float) * bins - 1e-9).astype(int), bins - 1)
    middles: NDArray[Any] = (place + 0.5) / bins
    return middles


def profile_bins(profiles: pd.DataFrame, bins: int, by: Sequence[str] = ("seed", "kappa")) -> pd.DataFrame:
    """Profiles as densities over the location (mean 1), averaged in `bins` equal bins and over heads.

    profiles: of one evaluation a run, as `RunTables.profiles` gives them. Returns one row a run, profile and bin: `by`,
    profile, location (middle of the bin), density. Raises ArgumentError for bins < 1.
    """
    middles = bin_middles(profiles["location"], bins)
    tables = [pd.DataFrame(columns=[*by, "profile", "location", "density"])]
    for name in PROFILES:
        density = profiles[name] / profiles.groupby(["run", "layer", "head"])[name].transform("mean")
        found = profiles[list(by)].assign(profile=name, location=middles, density=density.astype(float))
        tables.append(found.groupby([*by, "profile", "location"])["density"].mean().reset_index())
    return pd.concat(tables[1:] if len(profiles) else tables[:1], ignore_index=True)


def over_seeds(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean over the rows of each group with its 95% t interval (NaN for one row): `by`, estimate, low, high."""
    rows = [
        dict(zip(by, keys, strict=True)) | mean_interval(values.tolist())._asdict()
        for keys, values in table.groupby(list(by), sort=False)[value]
    ]
    return pd.DataFrame(rows, columns=[*by, "estimate", "low", "high"])


def _agreement(part: pd.DataFrame, sequences: int) -> dict[str, float]:
    """The numbers of one profile: `part` has one row a location."""
    theta = part["location"].to_numpy(float)
    values = {name: part[name].to_numpy(float) for name in PROFILES}
    measured, predicted, gradient = (values[name] for name in PROFILES)
    row = {
        "total_variation": total_variation(predicted, measured),
        "mirrored_variation": total_variation(predicted[::-1], measured),
        "gradient_variation": total_variation(predicted, gradient),
        "noise": sampling_noise(_smoothed(measured), sequences),
    }
    row |= {f"centre_{name}": float((theta * profile).sum() / profile.sum()) for name, profile in values.items()}
    return row | {f"level_{name}": float(profile.mean()) for name, profile in values.items()}


def _smoothed(shares: NDArray[Any]) -> NDArray[Any]:
    """Running mean over a sixteenth of the sequence, shorter at the ends."""
    width = max(1, len(shares) // SMOOTHING)
    window = np.ones(width)
    smooth = np.convolve(shares, window, "same") / np.convolve(np.ones_like(shares), window, "same")
    clipped: NDArray[Any] = np.clip(smooth, 0, 1)
    return clipped
