"""Tables of spectra: matrices with a chosen spectrum, and Xavier draws beside their law. Book, "The eigenspectrum"."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Generator, Tensor

from qkrepro.errors import check_integer
from qkrepro.initialisation import XavierLaw, xavier_law, xavier_qk
from qkrepro.intervals import t_interval
from qkrepro.spectrum import matrix_moments, qk_eigenvalues, qk_moments, random_spectrum_matrix


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
