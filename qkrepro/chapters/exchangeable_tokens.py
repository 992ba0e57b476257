"""Attention as inference: keys and values that share a latent, its posterior in closed form, and the error over length.

Keys k_i ~ N(0, Σ) and values v_i = b·k_i + noise are exchangeable: given b ~ N(0, I) they are independent. Attention
with logits qᵀWk tends to bᵀΣWᵀq, which is b·q for every query exactly when W = Σ⁻¹. Source: book, "Exchangeable
tokens"; the question is that of arXiv 2212.14852, model and experiment are ours.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from qkrepro.evidence.claims import Claim, Tables, Threshold, Verdict
from qkrepro.evidence.style import draw_intervals
from qkrepro.evidence.verdicts import above, settings_verdict
from qkrepro.theory.spectrum import qk_matrix, random_spectrum_matrix
from qkrepro.theory.statistics import intervals, t_interval
from qkrepro.training.side_by_side import Heads, minimise

READS: tuple[str, ...] = ()
SOURCE = "2212.14852"
SPECTRUM_SAYS = (
    "The right parameter is the inverse covariance of the tokens: the most concentrated spectrum there is, seen in "
    "their own covariance."
)
PARAMETERS = ("right: inverse covariance", "equal eigenvalues", "dispersed", "uniform attention")
RATE = 0.25  # fall of the error with length, as a power, from which it counts: half of that of a mean
ALIGNED = 0.9  # cosine of two matrices from which a learnt one counts as found


def key_covariances(dim: int, ratio: float) -> dict[str, Tensor]:
    """Return a covariance by setting, (d, d): the identity, and a diagonal one whose extremes differ by `ratio`."""
    scales = torch.logspace(-0.5, 0.5, dim, base=ratio, dtype=torch.float64)
    return {"isotropic": torch.eye(dim, dtype=torch.float64), "anisotropic": torch.diag(scales)}


def parameters(cov: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Return W by name, (d, d): the right one, others of its trace (a multiple of I; a dispersed one), and zero."""
    right, dim = torch.linalg.inv(cov), len(cov)
    mean = float(right.trace()) / dim
    equal = mean * torch.eye(dim, dtype=torch.float64)
    dispersed = random_spectrum_matrix(dim, mean, mean**2, generator=generator)
    named = dict(zip(PARAMETERS, (right, equal, dispersed, torch.zeros_like(right)), strict=True))
    if torch.equal(cov, torch.eye(dim, dtype=torch.float64)):
        del named["equal eigenvalues"]  # the right one
    return named


def draw_sequences(
    cov: Tensor, size: tuple[int, ...], length: int, noise: float, generator: Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return queries (*size, d) with qᵀΣ⁻¹q = 1, keys (*size, T, d), values (*size, T), latents b (*size, d).

    cov: Σ of the keys, (d, d). length: T. noise: standard deviation of the values' own part. generator: of the draws.
    """
    root = torch.linalg.cholesky(cov)
    draw = [torch.randn(*size, 1, len(cov), generator=generator, dtype=torch.float64) for _ in range(2)]
    keys = torch.randn(*size, length, len(cov), generator=generator, dtype=torch.float64) @ root.mT
    latent = draw[0][..., 0, :]
    error = noise * torch.randn(*size, length, generator=generator, dtype=torch.float64)
    queries = torch.nn.functional.normalize(draw[1][..., 0, :], dim=-1) @ root.mT
    return queries, keys, (keys @ latent[..., None])[..., 0] + error, latent


def attention_estimate(queries: Tensor, keys: Tensor, values: Tensor, w: Tensor) -> Tensor:
    """Return Σ_i A_i v_i with A = softmax(qᵀ W k_i), (...).

    queries: (..., d); keys: (..., T, d); values: (..., T); w: (d, d).
    """
    logits = (keys @ (queries @ w)[..., None])[..., 0]  # (..., T)
    estimate: Tensor = (torch.softmax(logits, dim=-1) * values).sum(-1)
    return estimate


def posterior_estimate(queries: Tensor, keys: Tensor, values: Tensor, noise: float) -> Tensor:
    """Return q · E[b | keys, values], (...): b ~ N(0, I) a priori, so that the posterior mean is a ridge regression.

    queries, keys, values: as in `attention_estimate`. noise: standard deviation of the values' own part.
    """
    gram = keys.mT @ keys + noise**2 * torch.eye(keys.shape[-1], dtype=keys.dtype)
    mean = torch.linalg.solve(gram, keys.mT @ values[..., None])[..., 0]  # (..., d)
    estimate: Tensor = (queries * mean).sum(-1)
    return estimate


def error_over_length(
    covariances: Mapping[str, Tensor], lengths: Sequence[int], *, groups: int, draws: int, noise: float, seed: int
) -> pd.DataFrame:
    """Return the root mean square of attention − posterior: tokens, parameter, length, group, error.

    covariances: of the keys, by setting. lengths: T. groups: of sequences; each has `draws` of its own, which all
    parameters see. noise: of the values. seed: of the draws.
    """
    generator, rows = torch.Generator().manual_seed(seed), []
    for tokens, cov in covariances.items():
        named = parameters(cov, generator)
        for length in lengths:
            for group in range(groups):
                queries, keys, values, _ = draw_sequences(cov, (draws,), length, noise, generator)
                oracle = posterior_estimate(queries, keys, values, noise)
                for parameter, w in named.items():
                    gap = attention_estimate(queries, keys, values, w) - oracle
                    rows.append((tokens, parameter, length, group, float(gap.square().mean().sqrt())))
    return pd.DataFrame(rows, columns=["tokens", "parameter", "length", "group", "error"])


def slopes(error: pd.DataFrame) -> pd.DataFrame:
    """Return the slope of log error over log length, fitted by least squares: tokens, parameter, group, slope."""
    keys = ["tokens", "parameter", "group"]
    rows = [
        (*names, np.polyfit(np.log(line["length"]), np.log(line["error"]), 1)[0])
        for names, line in error.groupby(keys, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*keys, "slope"])


def learnt_parameters(
    covariances: Mapping[str, Tensor], *, runs: int, batch: int, length: int, noise: float, steps: int, rate: float
) -> pd.DataFrame:
    """Train W on the squared error of a further value of the sequence, and compare it with Σ⁻¹.

    covariances: of the keys, by setting. runs: of the training, each with `batch` sequences of this length a step.
    noise: of the values. steps, rate: of Adam. Returns tokens, run, aligned (cosine of W and Σ⁻¹), scale (its length in
    units of Σ⁻¹'s), effective_number (N_W) and effective_number_tokens (N_M of M = Σ^½WΣ^½), one row a run.
    """
    frames = []
    for tokens, cov in covariances.items():
        generator = torch.Generator().manual_seed(0)
        heads = Heads(runs, len(cov), len(cov), generator)

        def loss(cov: Tensor = cov, heads: Heads = heads, generator: Generator = generator) -> Tensor:
            queries, keys, values, latent = draw_sequences(cov, (len(heads.w_q), batch), length, noise, generator)
            attention = torch.softmax(heads(queries[:, :, None], keys), dim=-1)[:, :, 0]  # (runs, batch, T)
            return ((attention * values).sum(-1) - (queries * latent).sum(-1)).square().mean(-1).sum()

        minimise(heads.parameters(), loss, steps=steps, rate=rate)
        w = qk_matrix(heads.w_q.detach(), heads.w_k.detach()) / len(cov) ** 0.5  # the logits' scale
        right, root = torch.linalg.inv(cov), cov.sqrt()  # of a diagonal matrix
        cosine = (w * right).sum((-2, -1)) / w.norm(dim=(-2, -1)) / right.norm()
        seen = root @ w @ root
        numbers = [m.diagonal(dim1=-2, dim2=-1).sum(-1).square() / m.square().sum((-2, -1)) for m in (w, seen)]
        columns = {"aligned": cosine, "scale": w.norm(dim=(-2, -1)) / right.norm()}
        columns |= dict(zip(("effective_number", "effective_number_tokens"), numbers, strict=True))
        table = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        frames.append(table.assign(tokens=tokens, run=range(runs)))
    return pd.concat(frames, ignore_index=True)


def error_falls_with_length(tables: Tables, rate: float = RATE) -> Verdict:
    """Judge the slopes of the right parameter by tokens: tokens, parameter, group, slope; interval below −rate."""
    right = tables["slopes"][tables["slopes"]["parameter"].str.startswith("right")]
    rates = {tokens: t_interval(-line["slope"]) for tokens, line in right.groupby("tokens", sort=False)}
    return settings_verdict({f"{tokens!s} tokens": above(interval, rate) for tokens, interval in rates.items()})


def others_keep_an_error(tables: Tables) -> Verdict:
    """Judge the error at the greatest length: each other parameter's minus the right one's, paired by group."""
    table = tables["error"]
    last = table[table["length"] == table["length"].max()]
    cases = {}
    for tokens, line in last.groupby("tokens", sort=False):
        wide = line.pivot(index="group", columns="parameter", values="error")
        (right,) = (name for name in wide if str(name).startswith("right"))
        for name in wide.columns.drop(right):
            cases[f"{tokens!s} tokens, {name!s}"] = above(t_interval(wide[name] - wide[right]), 0)
    return settings_verdict(cases)


def training_finds_it(tables: Tables, bar: float = ALIGNED) -> Verdict:
    """Judge the cosine of the learnt W and Σ⁻¹ by tokens: `learnt` has tokens, run, aligned."""
    groups = tables["learnt"].groupby("tokens", sort=False)["aligned"]
    return settings_verdict({f"{tokens} tokens": above(t_interval(line), bar) for tokens, line in groups})


def plot_errors(error: pd.DataFrame, ax: Axes) -> None:
    """Draw the error over the length with intervals over groups, a line a parameter; of one law of tokens."""
    colours = dict(zip(PARAMETERS, ("C0", "C1", "C3", "0.5"), strict=True))
    for parameter, line in intervals(error, ["parameter", "length"], "error").groupby("parameter", sort=False):
        draw_intervals(
            ax, line["length"], line, fmt="o-", markersize=3, label=str(parameter), color=colours[str(parameter)]
        )
    ax.set(xscale="log", yscale="log", xlabel="length T", ylabel="attention − posterior, r.m.s.")


SETTING = "linear regression from Gaussian keys"
CLAIMS = (
    Claim(
        name="error-falls-with-length",
        chapter="exchangeable_tokens",
        provenance="literature",
        statement="With the right parameter attention infers the latent posterior, up to an error that falls with T.",
        rule="The slope of log error over log length lies below −0.25 for each law of tokens (95% t interval).",
        refuted_by="slopes above that for each law of tokens",
        tables=("slopes",),
        judge=error_falls_with_length,
        figure="fig-exchangeable",
        threshold=Threshold("fall of the error, as a power of T", RATE, (0.1, 0.25, 0.4, 0.5), error_falls_with_length),
        setting=SETTING,
    ),
    Claim(
        name="others-keep-an-error",
        chapter="exchangeable_tokens",
        provenance="derived",
        statement="Only the inverse covariance does: other matrices, of the same trace or zero, keep a greater error.",
        rule="At the greatest length each other matrix has the greater error (paired 95% t interval over groups).",
        refuted_by="a smaller error of each",
        tables=("error",),
        judge=others_keep_an_error,
        figure="fig-exchangeable",
        setting=SETTING,
    ),
    Claim(
        name="training-finds-the-precision",
        chapter="exchangeable_tokens",
        provenance="ours",
        statement="A head that is trained to predict a further value learns a multiple of the inverse covariance.",
        rule="The cosine of W and Σ⁻¹ is above 0.9 for each law of tokens (95% t interval over runs).",
        refuted_by="a cosine below 0.9 for each",
        tables=("learnt",),
        judge=training_finds_it,
        threshold=Threshold("cosine of W and Σ⁻¹", ALIGNED, (0.5, 0.8, 0.9, 0.95, 0.99), training_finds_it),
        setting=SETTING,
    ),
)
