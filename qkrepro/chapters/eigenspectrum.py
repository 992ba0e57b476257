"""Tables of spectra: matrices with a chosen spectrum, and Xavier draws beside their law. Book, "The eigenspectrum"."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Generator, Tensor

from qkrepro.errors import check_integer
from qkrepro.evidence.claims import claims_judged_by
from qkrepro.evidence.rounding import fixed
from qkrepro.evidence.verdicts import Tables, Verdict, share_verdict
from qkrepro.theory.spectrum import matrix_moments, qk_eigenvalues, qk_moments, random_spectrum_matrix
from qkrepro.theory.statistics import Interval, t_interval
from qkrepro.theory.xavier import XavierLaw, xavier_law, xavier_qk


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
    effective_number (tr W)²/tr W² (negative where tr W² is) and expected_frobenius_sq, the closed form.
    """
    check_integer("draws", draws, at_least=1)
    moments = qk_moments(*xavier_qk(d_model, d_head, batch=(draws,), generator=generator))
    columns = {
        "eigen_mean": moments.eigen_mean,
        "eigen_variance": moments.eigen_variance,
        "trace": moments.trace,
        "trace_sq": moments.trace_sq,
        "frobenius_sq": moments.frobenius_sq,
        "spectral_norm": moments.spectral_norm,
        "effective_number": moments.trace.square() / moments.trace_sq,
    }
    table = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
    return table.assign(expected_frobenius_sq=xavier_law(d_model, d_head).frobenius_sq)


def against_law(table: pd.DataFrame, law: XavierLaw) -> pd.DataFrame:
    """Means over draws with 95% t intervals beside the law, one row a quantity; the spectral norm's law is a limit.

    table: of `xavier_moments`. Columns: quantity, law, estimate, low, high.
    """
    expected = {
        "trace": (table["trace"], 0.0),
        "trace squared": (table["trace"] ** 2, law.trace_std**2),
        "trace of W²": (table["trace_sq"], law.trace_sq),
        "squared Frobenius norm": (table["frobenius_sq"], law.frobenius_sq),
        "spectral norm (limit)": (table["spectral_norm"], law.spectral_norm),
    }
    return pd.DataFrame(
        {"quantity": name, "law": value, **t_interval(drawn)._asdict()} for name, (drawn, value) in expected.items()
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


def _text(interval: Interval, digits: int = 2) -> str:
    return f"{fixed(interval.estimate, digits)} [{fixed(interval.low, digits)}, {fixed(interval.high, digits)}]"


def xavier_spectrum(tables: Tables) -> Verdict:
    """Table xavier: eigen_mean, frobenius_sq, expected_frobenius_sq, one row a draw (eigenvalues over d_model)."""
    table = tables["xavier"]
    mean = t_interval(table["eigen_mean"])
    ratio = t_interval(table["frobenius_sq"] / table["expected_frobenius_sq"])
    because = f"eigenvalue mean {_text(mean, 4)}, squared Frobenius norm over its closed form {_text(ratio, 3)}"
    return share_verdict([mean.low <= 0 <= mean.high, ratio.low <= 1 <= ratio.high], because)


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


CLAIMS = claims_judged_by(xavier_spectrum)
