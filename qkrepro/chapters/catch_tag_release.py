"""Sinks that catch tokens, tag and release them: a two-layer model that learns an average, and MiniLM's outliers.

A sequence holds numbers and one separator; the last token answers with the mean of the numbers after the separator.
`python -m qkrepro.chapters.catch_tag_release results/catch-tag-release` makes the record of longer trainings.
Source: book, "Catch, tag, release"; the question and the kind of task are those of arXiv 2502.00919, the models ours.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor, nn

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.verdicts import above, both, settings_verdict
from qkrepro.files import write_atomically
from qkrepro.models.minilm import layer_views
from qkrepro.theory.statistics import t_interval
from qkrepro.training.side_by_side import Heads, matrices, minimise

READS = ("notebooks/texts/walk.txt", "results/catch-tag-release/*")
SOURCE = "2502.00919"
SPECTRUM_SAYS = "Catching needs one direction of W, from what queries share to the sink: dispersed, not concentrated."
SINK = 0.2  # mean attention from which a token is a sink, as reported of arXiv 2502.00919
LEARNT = 0.9  # share of the target's variance from which the average counts as learnt
HALF = 0.5  # share of variance that is one tag, of attention that is released, of W's energy in one direction


def draw_batch(runs: int, batch: int, length: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (runs, batch, T, 3): number, is a number, is the separator; its place and the target mean.

    Numbers are standard normal, from the generator; the separator is uniform over places 1 … T − 2 of the length T.
    """
    numbers = torch.randn(runs, batch, length, generator=generator, dtype=torch.float64)
    place = torch.randint(1, length - 1, (runs, batch), generator=generator)
    separator = torch.arange(length) == place[..., None]  # (runs, batch, T)
    after = torch.arange(length) > place[..., None]
    features = torch.stack([numbers.masked_fill(separator, 0), ~separator, separator], dim=-1)
    return features, place, (numbers * after).sum(-1) / after.sum(-1)


class Averager(nn.Module):
    """Two causal attention layers with skip connections and a linear readout, one model for each run; no positions."""

    def __init__(self, runs: int, dim: int, generator: Generator) -> None:
        """Draw the weights."""
        super().__init__()
        self.embedding = matrices(runs, dim, 3, generator)
        self.heads = nn.ModuleList([Heads(runs, dim, dim, generator) for _ in range(2)])
        self.values = nn.ParameterList([matrices(runs, dim, dim, generator) for _ in range(2)])
        self.readout = matrices(runs, 1, dim, generator)

    def forward(self, features: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the answers (runs, batch), both attentions, the second of the last token, and what the first adds."""
        x = features @ self.embedding.mT[:, None]
        hidden, queries = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).triu(1), x
        attentions, added = [], []
        for heads, value in zip(self.heads, self.values, strict=True):
            logits = heads(queries, x).masked_fill(hidden[-queries.shape[-2] :], -torch.inf)
            attentions.append(logits.softmax(-1))
            added.append(attentions[-1] @ x @ value.mT[:, None])
            queries = (x := queries + added[-1])[:, :, -1:]  # the answer needs the last token alone
        return (x[:, :, -1] @ self.readout.mT)[..., 0], attentions, added[0]


def train_averagers(
    *, runs: int, dim: int, length: int, batch: int, steps: int, rate: float, tested: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train `runs` models on the average from weights and data of their own, and look for the three steps in each.

    dim, length: d and T. batch: sequences a step and run. steps, rate: of Adam. tested: new sequences to measure.
    Returns run, learnt (share of the target's variance), catch (first layer: mean attention to the separator from the
    tokens after it), before and release (second layer: attention of the last token to those before the separator and
    after it), tag (share of the variance of what the first layer adds that lies between caught tokens and the others),
    value (first layer: value norm of the separator over the root mean square one of numbers); and the spectra of both
    layers with energy, the share of ‖W‖_F² in the greatest singular value, before training ("start") and after.
    """
    generator = torch.Generator().manual_seed(0)
    model = Averager(runs, dim, generator)
    spectra = [_spectra(model).assign(when="start")]

    def loss() -> Tensor:
        features, _, target = draw_batch(runs, batch, length, generator)
        return nn.functional.mse_loss(model(features)[0], target, reduction="none").mean(-1).sum()

    minimise(model.parameters(), loss, steps=steps, rate=rate)
    spectra.append(_spectra(model).assign(when="trained"))
    generator.manual_seed(1)
    with torch.no_grad():
        features, place, target = draw_batch(runs, tested, length, generator)
        answers, (first, second), added = model(features)
    after = torch.arange(length) > place[..., None]  # (runs, tested, T), the tokens that a separator can catch
    separator = features[..., 2]
    other = ~after & (separator == 0)
    pieces = (model.values[0] @ model.embedding).detach().norm(dim=-2)  # (runs, 3), of number, "is a number", separator
    columns = {
        "value": pieces[:, 2] / pieces[:, :2].norm(dim=-1),
        "learnt": 1 - (answers - target).square().mean(-1) / target.var(-1, correction=0),
        "catch": ((first * separator[..., None, :]).sum(-1) * after).sum((1, 2)) / after.sum((1, 2)),
        "tag": torch.stack([_between(added[run], after[run], other[run]) for run in range(runs)]),
        "release": (second[..., -1, :] * after).sum(-1).mean(-1),
        "before": (second[..., -1, :] * other).sum(-1).mean(-1),
    }
    table = pd.DataFrame({"run": range(runs)} | {name: values.numpy() for name, values in columns.items()})
    return table, pd.concat(spectra, ignore_index=True)


def _between(added: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return the share of the variance of vectors (…, d), all directions together, between two groups of them."""
    pooled = torch.cat(groups := [added[one], added[other]])
    between = sum(len(group) * (group.mean(0) - pooled.mean(0)).square().sum() for group in groups)
    return between / (pooled - pooled.mean(0)).square().sum()


def _spectra(model: Averager) -> pd.DataFrame:
    """Return layer (1, 2), the columns of `Heads.spectrum` and energy, of both layers of each run."""
    frames = []
    for layer, heads in enumerate(model.heads, start=1):
        assert isinstance(heads, Heads)
        w = (heads.w_q.mT @ heads.w_k).detach()
        energy = torch.linalg.matrix_norm(w, 2).square() / w.square().sum((-2, -1))
        frames.append(heads.spectrum().assign(layer=layer, energy=energy.numpy()))
    return pd.concat(frames, ignore_index=True)


def sink_outliers(folder: Path, windows: Sequence[Tensor], sink: float = SINK) -> pd.DataFrame:
    """Return what sets the sinks of MiniLM apart, one row a window, layer and kind ("sink" or "other").

    A sink is a token with mean attention of at least `sink` in some head of the layer. outlier: the greatest |feature|
    of a token as the layer reads it, over the root mean square of its features; mean over the tokens of a kind.
    """
    rows = []
    for view in layer_views(folder, list(windows)):
        caught = (view.attention.double().mean(1) >= sink).any(0)  # (T,)
        inputs = view.inputs.double()
        outlier = inputs.abs().amax(-1) / inputs.square().mean(-1).sqrt()
        for kind, chosen in (("sink", caught), ("other", ~caught)):
            if bool(caught.any()):
                rows.append((view.window, view.layer, kind, int(chosen.sum()), float(outlier[chosen].mean())))
    return pd.DataFrame(rows, columns=["window", "layer", "kind", "tokens", "outlier"])


def record(folder: Path, *, runs: int = 10, steps: int = 2000) -> None:
    """Write runs-*.csv, the runs of `train_averagers` after more steps than a page has time for, unless it is there."""
    if not (path := folder / f"runs-{steps}.csv").exists():
        table, _ = train_averagers(runs=runs, dim=8, length=12, batch=32, steps=steps, rate=0.02, tested=300)
        write_atomically(path, table.to_csv(index=False, float_format="%.6g").encode())


def average_is_learnt_so(tables: Tables, sink: float = SINK) -> Verdict:
    """Judge each run of `runs` (run, learnt, catch, tag, release) that learnt the average: does it take all steps?"""
    learnt = tables["runs"].query("learnt >= @LEARNT")
    cases = {
        f"run {row['run']:.0f}": both(row["catch"] >= sink, row["tag"] >= HALF, row["release"] >= HALF)
        for row in learnt.to_dict("records")
    }
    return settings_verdict(cases, remark=f"{len(learnt)} of {len(tables['runs'])} runs learnt")


def sinks_have_outliers(tables: Tables) -> Verdict:
    """Judge by layer, paired by window, whether `outliers` (window, layer, kind, outlier) is greater at sinks."""
    cases = {}
    for layer, group in tables["outliers"].groupby("layer"):
        wide = group.pivot(index="window", columns="kind", values="outlier")
        if len(wide) > 1:
            cases[f"layer {layer}"] = above(t_interval(wide["sink"] - wide["other"]), 0)
    return settings_verdict(cases)


def catching_is_one_direction(tables: Tables) -> Verdict:
    """Judge energy of the first layer in `spectra` (run, layer, when, energy) over the runs of `runs` that learnt."""
    learnt = tables["runs"].query("learnt >= @LEARNT")["run"]
    first = tables["spectra"].query("layer == 1 and when == 'trained'")
    energies = first[first["run"].isin(learnt)].set_index("run")["energy"]
    return settings_verdict({f"run {run:.0f}": energy >= HALF for run, energy in energies.items()})


def plot_runs(runs: pd.DataFrame, ax: Axes) -> None:
    """Draw how far each run takes the three steps, over what it learnt."""
    for column, marker in (("catch", "o"), ("tag", "s"), ("release", "^")):
        ax.plot(runs["learnt"], runs[column], marker, markersize=7, fillstyle="none", label=column)
    ax.axvline(LEARNT, color="0.6", linewidth=0.8)
    ax.axhline(SINK, color="0.6", linewidth=0.8, linestyle=":")
    ax.set(xlabel="share of the average's variance that is learnt", ylabel="attention or variance", ylim=(0, 1.05))
    ax.legend(loc="upper left")


def plot_outliers(outliers: pd.DataFrame, ax: Axes) -> None:
    """Draw the outlier of sinks and of other tokens over the layer, a point a window."""
    for kind, marker, shift in (("sink", "o", -0.08), ("other", "s", 0.08)):
        rows = outliers[outliers["kind"] == kind]
        ax.plot(rows["layer"] + shift, rows["outlier"], marker, fillstyle="none", label=f"{kind} tokens")
    ax.set(xlabel="layer", ylabel="greatest |feature| / rms", ylim=(0, None))
    ax.legend()


SETTING = "two layers trained on an averaging task"
CLAIMS = (
    Claim(
        name="average-is-caught-tagged-released",
        chapter="catch_tag_release",
        provenance="literature",
        statement="Two layers that learn a simple average catch tokens in a sink, tag them, and find them by the tag.",
        rule=(
            "In each run that explains at least 0.9 of the variance: mean attention of the caught tokens to the sink "
            "of at least 0.2, half of the variance of what is added between caught tokens and others, and half of the "
            "second layer's attention on the caught ones."
        ),
        refuted_by="runs that learn the average and leave out a step",
        tables=("runs",),
        judge=average_is_learnt_so,
        figure="fig-catch-runs",
        threshold=Threshold("attention to a sink", SINK, (0.1, 0.2, 0.4, 0.8), average_is_learnt_so),
        setting=SETTING,
    ),
    Claim(
        name="sinks-have-outlier-features",
        chapter="catch_tag_release",
        provenance="literature",
        statement="Attention sinks come with outlier features.",
        rule=(
            "In each layer that has sinks, tokens with mean attention of at least 0.2 in some head, their greatest "
            "|feature| over the root mean square exceeds that of the other tokens: paired 95% t interval over windows."
        ),
        refuted_by="smaller greatest features at sinks",
        tables=("outliers",),
        judge=sinks_have_outliers,
        figure="fig-catch-outliers",
        setting="MiniLM on one story",
    ),
    Claim(
        name="catching-is-one-direction",
        chapter="catch_tag_release",
        provenance="ours",
        statement="The W of a layer that catches spends most of its energy on one singular direction.",
        rule="In each run that learnt, the greatest singular value has at least half of the first layer's ‖W‖_F².",
        refuted_by="runs that learn with their energy spread",
        tables=("runs", "spectra"),
        judge=catching_is_one_direction,
        figure="fig-catch-runs",
        setting=SETTING,
    ),
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    record(Path(sys.argv[1]))
