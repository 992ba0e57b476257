"""Tables of spectra: matrices with a chosen spectrum, and Xavier draws beside their law. Book, "The eigenspectrum"."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from qkrepro.errors import check_integer
from qkrepro.evidence.claims import Claim, Outcome, Tables, Threshold, Verdict
from qkrepro.evidence.verdicts import universal_verdict, within
from qkrepro.theory.spectrum import matrix_moments, qk_eigenvalues, qk_moments, random_spectrum_matrix
from qkrepro.theory.statistics import t_interval
from qkrepro.theory.xavier import XavierLaw, xavier_qk

CHUNK = 100  # heads drawn at once, bounds the memory
LIMIT = "spectral norm (limit)"


def chosen_spectra(dim: int, spectra: Sequence[Sequence[float]], *, generator: Generator) -> pd.DataFrame:
    """Eigenvalues of one symmetric draw a (mean, variance), one row each: mean, variance (asked for), eigenvalue."""
    tables = []
    for mean, variance in spectra:
        w = random_spectrum_matrix(dim, mean, variance, generator=generator)
        values = torch.linalg.eigvalsh(w).numpy()
        tables.append(pd.DataFrame({"mean": mean, "variance": variance, "eigenvalue": values}))
    return pd.concat(tables, ignore_index=True)


def equal_eigenvalues(dim: int, non_normality: float, *, generator: Generator) -> dict[str, Tensor]:
    """Two pairs of (dim, dim) matrices, by name: the second of a pair has the first one's eigenvalues, not its norms.

    All eigenvalues 1/dim, alone and with a strictly triangular part of Frobenius norm `non_normality`; and a spectrum
    of mean 1 and variance 1, symmetric and with the default triangular part of `random_spectrum_matrix`.
    """
    state = generator.get_state()
    symmetric = random_spectrum_matrix(dim, 1.0, 1.0, generator=generator)
    generator.set_state(state)  # the same eigenvalues again
    slanted = random_spectrum_matrix(dim, 1.0, 1.0, symmetric=False, generator=generator)
    strong = random_spectrum_matrix(
        dim, 1 / dim, 0.0, symmetric=False, non_normality=non_normality, generator=generator
    )
    identity = torch.eye(dim, dtype=torch.float64) / dim
    return {"I/d": identity, "I/d + triangular": strong, "symmetric": symmetric, "not symmetric": slanted}


def singular_values(matrices: Mapping[str, Tensor]) -> pd.DataFrame:
    """Singular values, one row a value: matrix, rank (1 the largest), singular_value."""
    tables = []
    for name, w in matrices.items():
        values = torch.linalg.svdvals(w).numpy()
        tables.append(pd.DataFrame({"matrix": name, "rank": range(1, len(values) + 1), "singular_value": values}))
    return pd.concat(tables, ignore_index=True)


def compare(matrices: Mapping[str, Tensor]) -> pd.DataFrame:
    """Moments of named (d, d) matrices, one row each: matrix, mean, variance (from traces), and the two norms."""
    rows = []
    for name, w in matrices.items():
        moments = matrix_moments(w)
        rows.append(
            {
                "matrix": name,
                "mean": float(moments.eigen_mean),
                "variance": round(float(moments.eigen_variance), 12) + 0.0,  # rounding leaves ±1e-16 of a variance 0
                "Frobenius norm": float(moments.frobenius_sq) ** 0.5,
                "spectral norm": float(moments.spectral_norm),
            }
        )
    return pd.DataFrame(rows)


def xavier_moments(d_model: int, d_head: int, *, draws: int, generator: Generator) -> pd.DataFrame:
    """Moments of Xavier draws, one row a draw.

    Columns: eigen_mean, eigen_variance (over d_model eigenvalues), trace, trace_sq, frobenius_sq, spectral_norm,
    effective_number (tr W)²/tr W² (negative where tr W² is), equal_number (tr W)²/Σ|λ|²: as many equal eigenvalues have
    this sum and this sum of squared moduli, at most d_head.
    """
    check_integer("draws", draws, at_least=1)
    tables = []
    for first in range(0, draws, CHUNK):
        w_q, w_k = xavier_qk(d_model, d_head, batch=(min(CHUNK, draws - first),), generator=generator)
        moments = qk_moments(w_q, w_k)
        columns = {
            "eigen_mean": moments.eigen_mean,
            "eigen_variance": moments.eigen_variance,
            "trace": moments.trace,
            "trace_sq": moments.trace_sq,
            "frobenius_sq": moments.frobenius_sq,
            "spectral_norm": moments.spectral_norm,
            "effective_number": moments.trace.square() / moments.trace_sq,
            "equal_number": moments.trace.square() / qk_eigenvalues(w_q, w_k).abs().square().sum(-1),
        }
        tables.append(pd.DataFrame({name: column.numpy() for name, column in columns.items()}))
    return pd.concat(tables, ignore_index=True)


def against_law(table: pd.DataFrame, law: XavierLaw) -> pd.DataFrame:
    """Means over draws with 95% t intervals beside the law, one row a quantity; the spectral norm's law is a limit.

    table: of `xavier_moments`. Columns: quantity, law, scale (what the quantity is measured in: the law itself, of the
    trace its standard deviation), estimate, low, high.
    """
    expected = {
        "trace": (table["trace"], 0.0),
        "trace squared": (table["trace"] ** 2, law.trace_std**2),
        "trace of W²": (table["trace_sq"], law.trace_sq),
        "squared Frobenius norm": (table["frobenius_sq"], law.frobenius_sq),
        LIMIT: (table["spectral_norm"], law.spectral_norm),
    }
    return pd.DataFrame(
        {"quantity": name, "law": value, "scale": value or law.trace_std, **t_interval(drawn)._asdict()}
        for name, (drawn, value) in expected.items()
    )


def radius_histogram(laws: Sequence[XavierLaw], *, bins: int, count: int, generator: Generator) -> pd.DataFrame:
    """Density of |eigenvalue| in units of each law's limit radius, with 95% t intervals over draws.

    count: eigenvalues a law, from count // d_head draws (2 at least). Bins divide [0, 1.2].
    Columns: d_head, radius (middle of the bin), estimate, low, high (of the density).
    """
    check_integer("bins", bins, at_least=1)
    edges = torch.linspace(0, 1.2, bins + 1, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    rows = []
    for law in laws:
        draws = max(2, count // law.d_head)
        weights = xavier_qk(law.d_model, law.d_head, batch=(draws,), generator=generator)
        ratios = qk_eigenvalues(*weights).abs() / law.eigen_radius  # (draws, d_head)
        inside = (ratios[..., None] > edges[:-1]) & (ratios[..., None] <= edges[1:])  # (draws, d_head, bins)
        density = inside.double().mean(1) * bins / 1.2  # (draws, bins)
        rows += [
            {"d_head": law.d_head, "radius": float(middle), **t_interval(column)._asdict()}
            for middle, column in zip(middles, density.mT.numpy(), strict=True)
        ]
    return pd.DataFrame(rows)


def xavier_spectrum(tables: Tables, margin: float = 0.2) -> Verdict:
    """Table checks: quantity, law, scale, low, high (95% over draws); the limit of the spectral norm is left out.

    margin: distance from the law, in units of `scale`, that counts as equal.
    """
    table = tables["checks"].query(f"quantity != {LIMIT!r}")
    low, high = ((table[end] - table["law"]) / table["scale"] for end in ("low", "high"))
    holds = [within(*ends, -margin, margin) for ends in zip(low, high, strict=True)]
    worst = float(np.maximum(low.abs(), high.abs()).max()) if len(table) else 0.0
    because = (
        f"{holds.count(True)} of {len(holds)} moments within {margin:.0%} of their closed form with their whole 95% "
        f"interval; the farthest end of one is {worst:.1%} off"
    )
    return universal_verdict(holds, because)


def xavier_starts_dispersed(tables: Tables, bound: float = 1.0) -> Verdict:
    """Table xavier: equal_number, one row a draw.

    bound: number of equal eigenvalues below which a head counts as dispersed.
    """
    number = tables["xavier"]["equal_number"].to_numpy()
    if len(number) < 2:
        return Verdict("not run", "fewer than two draws")
    mean = t_interval(number)
    dispersed = int((number < bound).sum())
    because = (
        f"as many as {mean.estimate:.2f} [{mean.low:.2f}, {mean.high:.2f}] equal eigenvalues on average; "
        f"below {bound:g} in {dispersed} of {len(number)} heads"
    )
    inside = within(mean.low, mean.high, -math.inf, bound)
    outcome: Outcome = "reproduced" if inside else "inconclusive" if inside is None else "not reproduced"
    return Verdict(outcome, because, dispersed, len(number))


def plot_chosen_spectra(table: pd.DataFrame, axis: Axes) -> None:
    """Eigenvalues as ticks, one line a case, with mean ± standard deviation above each line.

    table: one row an eigenvalue: mean and variance (as asked for), eigenvalue (real).
    """
    labels = []
    for row, (_, group) in enumerate(table.groupby(["mean", "variance"])):
        mean, variance = float(group["mean"].iloc[0]), float(group["variance"].iloc[0])
        axis.plot(group["eigenvalue"], np.full(len(group), row), "|", markersize=12, color=f"C{row}")
        axis.errorbar(mean, row + 0.3, xerr=math.sqrt(variance), fmt="o", markersize=4, capsize=3, color="0.25")
        labels.append(f"mean {mean:g}\nvariance {variance:g}")
    axis.set(xlabel="eigenvalue", title="Chosen mean and variance", ylim=(-0.5, len(labels) - 0.4))
    axis.set_yticks(range(len(labels)), labels)


def plot_singular_values(table: pd.DataFrame, axis: Axes) -> None:
    """Sorted singular values, a line a matrix. table: one row a value: matrix, rank (1 the largest), singular_value."""
    for name, group in table.groupby("matrix", sort=False):
        axis.plot(group["rank"], group["singular_value"], label=name)
    axis.set(
        yscale="log",
        ylim=(1e-6, None),
        xlabel="rank",
        ylabel="singular value",
        title="Equal eigenvalues, other norms",
    )
    axis.legend(loc="lower left")


def plot_complex_eigenvalues(values: torch.Tensor, axis: Axes, *, label: str, marker: str = ".") -> None:
    """Eigenvalues, complex of any shape, in the complex plane with equal scales."""
    flat = values.flatten().numpy()
    axis.plot(flat.real, flat.imag, marker, markersize=6 if marker == "." else 10, label=label, linestyle="none")
    axis.set(xlabel="real part", ylabel="imaginary part", aspect="equal")
    axis.locator_params(axis="x", nbins=5)


def plot_radius_law(table: pd.DataFrame, laws: Sequence[XavierLaw], axis: Axes) -> None:
    """Histogram of |eigenvalue| over its limit radius, points with intervals over draws, beside the limit density.

    table: one row a bin and d_head: d_head, radius (middle of the bin, in units of the limit radius), estimate, low,
    high (of the density). laws: one a d_head.
    """
    ratio = torch.linspace(0, 1, 200, dtype=torch.float64)
    for colour, law in enumerate(laws):
        rows = table[table["d_head"] == law.d_head]
        bars = [rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]
        label = f"d_head {law.d_head}"
        axis.errorbar(
            rows["radius"], rows["estimate"], yerr=bars, fmt="o", markersize=4, color=f"C{colour}", label=label
        )
        density = law.radius_density(ratio * law.eigen_radius) * law.eigen_radius
        axis.plot(ratio, density, color=f"C{colour}")
    axis.axvline(1, color="0.4", linestyle=":", linewidth=1)
    axis.set(xlabel="|eigenvalue| / limit radius", ylabel="density", title="Moduli and their limit law")
    axis.legend(loc="upper left", title=f"d_model {laws[0].d_model}", title_fontsize="small")


def plot_trace_histogram(traces: pd.Series, trace_std: float, axis: Axes) -> None:
    """Histogram of tr W over draws in units of its standard deviation, beside the standard normal density."""
    axis.hist(traces / trace_std, bins=20, range=(-4, 4), density=True, color="C0", alpha=0.5, label="draws")
    z = np.linspace(-4, 4, 200)
    axis.plot(z, np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), color="0.25", label="normal law")
    axis.set(xlabel="tr W / its standard deviation", ylabel="density", title="The sum of the eigenvalues")
    axis.legend(loc="upper left")


CLAIMS = (
    Claim(
        name="xavier-spectrum",
        chapter="eigenspectrum",
        provenance="derived",
        statement=(
            "Xavier initialisation of query and key weights gives W a trace of mean zero; the variance of the trace "
            "and the means of tr W² and of the squared Frobenius norm have closed forms."
        ),
        rule=(
            "Each of the four moments lies within a fifth of its closed form with its whole 95% t interval over draws "
            "(the mean of the trace: within a fifth of a standard deviation of zero). Inconclusive while an interval "
            "reaches across that margin."
        ),
        refuted_by="one moment whose whole interval lies beyond the margin",
        tables=("checks",),
        judge=xavier_spectrum,
        figure="fig-xavier-spectrum",
        threshold=Threshold(
            "distance from the closed form, as a share of it", 0.2, (0.05, 0.1, 0.15, 0.2, 0.3, 0.5), xavier_spectrum
        ),
    ),
    Claim(
        name="xavier-starts-dispersed",
        chapter="eigenspectrum",
        provenance="derived",
        statement=(
            "Under Xavier initialisation a head starts dispersed: its eigenvalues are worth less than one of "
            "d_head equal ones."
        ),
        rule=(
            "The 95% t interval over draws of (tr W)²/Σ|λ|², which is d_head for equal eigenvalues, lies below 1. "
            "Inconclusive when it contains 1."
        ),
        refuted_by="an interval that lies above 1",
        tables=("xavier",),
        judge=xavier_starts_dispersed,
        figure="fig-xavier-spectrum",
        threshold=Threshold(
            "number of equal eigenvalues", 1.0, (0.02, 0.05, 0.1, 0.5, 1.0, 2.0, 8.0), xavier_starts_dispersed
        ),
    ),
)
READS = ()
