"""Does the theory see trained models: the recorded profiles of the last query against what the weights predict.

Every profile runs over the locations of the keys. Profiles are compared after each is divided by its sum, by their
total variation: 0 where they are the same, 1 where they share no location. Source: book, "Theory in trained models".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from qkrepro.errors import ArgumentError, check_integer
from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.outcomes import interval_text
from qkrepro.evidence.paired_runs import FEWEST_SEEDS
from qkrepro.evidence.run_figures import Style, by_kappa, kappa_colour, kappa_label, plot_runs
from qkrepro.evidence.style import COLOURS, INK, PALETTE
from qkrepro.evidence.verdicts import SAME_PROFILE
from qkrepro.theory.statistics import bin_middles, t_interval, total_variation
from qkrepro.training.tables import RunTables

READS = (
    "results/locater-wikitext-2*",
    "results/walk",
)  # what the notebook reads beside the package, relative to the checkout

PROFILES = ("nonsaturated", "predicted", "gradient")  # measured, from the weights, A(1 − A)
SMOOTHING = 16  # windows in a sequence: over so many the measured shares are averaged to estimate their noise
DISTANCES = ("total_variation", "mirrored_variation", "gradient_variation", "noise")
AGREEMENT = (*DISTANCES, *(f"{what}_{name}" for what in ("centre", "level") for name in PROFILES))
PROFILE_STYLES: Mapping[str, Style] = {
    "nonsaturated": {"label": "measured", "color": INK, "linewidth": 2.6},
    "predicted": {"label": "predicted", "color": COLOURS["concentrated"], "linestyle": "--"},
    "gradient": {"label": "gradient", "color": PALETTE[3]},
}
LAW_STYLES: Mapping[str, Style] = {
    "measured": {"label": "measured", "color": INK, "linewidth": 2.6},
    "prediction": {"label": "prediction", "color": COLOURS["concentrated"], "linestyle": "--"},
    "drawn walk": {"label": "drawn walk", "color": PALETTE[4], "linestyle": "--"},
    "normal": {"label": "normal", "color": COLOURS["locater"]},
    "shuffled": {"label": "shuffled", "color": PALETTE[3]},
}
TOKEN_STYLES: Mapping[str, Style] = {
    "walk": {"label": "walk", "color": PALETTE[4], "linestyle": "--"},
    "start": {"label": "at the start", "color": INK},
    "trained": {"label": "trained", "color": COLOURS["concentrated"]},
}
LOCATION = "location of the key, i/T"


def sampling_noise(shares: ArrayLike, sequences: int) -> float:
    """Return the expected total variation of a profile, (n,) in [0, 1], from itself counted in `sequences` draws.

    Exact per location (binomial), without the small effect of dividing by a random sum: what agreement no prediction
    can beat. Raises ArgumentError for sequences < 1 or shares outside [0, 1].
    """
    check_integer("sequences", sequences, at_least=1)
    share = np.asarray(shares, dtype=np.float64)
    if share.ndim != 1 or not ((share >= 0) & (share <= 1)).all() or not share.sum() > 0:
        raise ArgumentError(f"shares must be (n,) in [0, 1] and not all 0, got shape {share.shape}")
    hits = np.arange(sequences + 1)[:, None]  # (sequences + 1, 1)
    weights = stats.binom.pmf(hits, sequences, share)  # (sequences + 1, n)
    deviation = (weights * np.abs(hits / sequences - share)).sum(0)  # (n,), E|counted − share|
    return float(deviation.sum() / (2 * share.sum()))


def profile_agreement(tables: RunTables, by: Sequence[str] = ("seed", "kappa")) -> pd.DataFrame:
    """Return how well prediction and measurement agree, one row a run, evaluation, layer and head.

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
    """Return the rows of `table` (columns run, update) at the update of each run's best validation loss."""
    best = tables.summary[["run", "best_update"]].rename(columns={"best_update": "update"})
    return table.merge(best.astype({"update": table["update"].dtype}), on=["run", "update"]).reset_index(drop=True)


def trained_table(agreement: pd.DataFrame) -> pd.DataFrame:
    """Return the table of the verdict: kappa, seed and the four distances, means over heads; one row a run."""
    return agreement.groupby(["kappa", "seed"], as_index=False)[list(DISTANCES)].mean()


def profile_bins(profiles: pd.DataFrame, bins: int, by: Sequence[str] = ("seed", "kappa")) -> pd.DataFrame:
    """Return profiles as densities over the location (mean 1), averaged in `bins` equal bins and over heads.

    profiles: of one evaluation a run, as `RunTables.profiles` gives them. Returns one row a run, profile and bin: `by`,
    profile, location (middle of the bin), density. Raises ArgumentError for bins < 1.
    """
    middles = bin_middles(profiles["location"], bins)
    tables = [pd.DataFrame(columns=[*by, "profile", "location", "density"])]
    for name in PROFILES:
        density = profiles[name] / profiles.groupby(["run", "layer", "head"])[name].transform("mean")
        values = profiles[list(by)].assign(profile=name, location=middles, density=density.astype(float))
        tables.append(values.groupby([*by, "profile", "location"])["density"].mean().reset_index())
    return pd.concat(tables[1:] if len(profiles) else tables[:1], ignore_index=True)


def _agreement(part: pd.DataFrame, sequences: int) -> dict[str, float]:
    """Return the numbers of one profile: `part` has one row a location."""
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
    """Return running mean over a sixteenth of the sequence, shorter at the ends."""
    width = max(1, len(shares) // SMOOTHING)
    window = np.ones(width)
    smooth = np.convolve(shares, window, "same") / np.convolve(np.ones_like(shares), window, "same")
    clipped: NDArray[Any] = np.clip(smooth, 0, 1)
    return clipped


def theory_sees_at(tables: Tables, limit: float) -> Verdict:
    """Judge table trained: kappa, seed, total_variation (predicted against measured share of unsaturated keys).

    Seeds are what varies: the two models of a seed share their start and their batches, and count once, by their mean.
    """
    trained = tables["trained"]
    seeds = by_seed(trained, "total_variation")
    if len(seeds) < FEWEST_SEEDS:
        return Verdict("not run", f"{len(seeds)} seeds; at least {FEWEST_SEEDS} are needed")
    distance = t_interval(seeds)
    because = f"total variation {interval_text(distance)} over {len(seeds)} seeds, at most {limit:g} is asked"
    outcome: Outcome = (
        "reproduced" if distance.high <= limit else "not reproduced" if distance.low > limit else "inconclusive"
    )
    return Verdict(outcome, because, int((trained["total_variation"] <= limit).sum()), len(trained))


def theory_sees_training(tables: Tables) -> Verdict:
    """Judge table trained, as `theory_sees_at`, at SAME_PROFILE."""
    return theory_sees_at(tables, SAME_PROFILE)


def by_seed(table: pd.DataFrame, column: str) -> list[float]:
    """Return one value a seed: the mean of its runs, which share their beginning and so are not independent."""
    return [float(value) for value in table.groupby("seed")[column].mean()]


def plot_distances(distances: pd.DataFrame, laws: Sequence[str], limit: float, axis: Axes) -> None:
    """Draw total variation from the measured profile, a row a law, points for runs; `limit` dotted.

    laws: those that are drawn, in this order.
    distances: law, kappa, total_variation; the baseline stands above the regularised runs in its row.
    """
    axis.axvline(limit, color=INK, linestyle=":", linewidth=1)
    for place, law in enumerate(laws):
        for number, (kappa, rows) in enumerate(by_kappa(distances[distances["law"] == law])):
            values = rows["total_variation"].astype(float).tolist()
            plot_runs(values, place + 0.4 * number - 0.2, axis, kappa_colour(kappa), across=True)
            if place == len(laws) - 1:
                where = (max(values) + 0.02, place + 0.4 * number - 0.2)
                axis.annotate(kappa_label(kappa), where, color=kappa_colour(kappa), va="center", fontsize="small")
    axis.set_yticks(range(len(laws)), laws)
    axis.set(ylim=(len(laws) - 0.4, -0.6), xlim=(0, None), xlabel="total variation from the measured profile")
    axis.grid(axis="y", visible=False)


CLAIMS = (
    Claim(
        name="theory-sees-trained-models",
        chapter="theory_in_trained_models",
        provenance="ours",
        statement="The predicted profile of keys that are not saturated matches the one measured in trained models.",
        conditions=(
            "random walk, normal form, linearised softmax with λ = √d; one layer, one head, all words of WikiText-2, "
            "last query, best checkpoint, κ = 0 and 1e-3"
        ),
        rule=(
            "Total variation between the two normalised profiles, mean of the models of a seed, with its 95% t "
            "interval over seeds: reproduced when it lies at or below 0.2, inconclusive when it contains 0.2."
        ),
        refuted_by="an interval above 0.2",
        tables=("trained",),
        judge=theory_sees_training,
        figure="fig-trained-profiles",
        threshold=Threshold(
            "largest total variation that counts as the same",
            SAME_PROFILE,
            (0.05, 0.1, 0.15, SAME_PROFILE, 0.25, 0.3, 0.4),
            theory_sees_at,
        ),
    ),
)
