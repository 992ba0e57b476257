"""What rotary positions do to a spectrum: one concentrated and one random head, over the distance of query and key.

A concentrated head W = P (a projection of rank d_head, all its eigenvalues 1) becomes W(Δ) with the eigenvalues of
R(−Δ), e^{±iΔf_j}: tr W(Δ) = 2 Σ_j cos(Δ f_j). Source: the book, "Heads in the wild" (ours, derived).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from qkrepro.head_products import Array, head_products
from qkrepro.rotary import Rotary, rotary_of_layer


def rotary_spectra(
    distances: Sequence[float], *, d_head: int = 32, d_model: int = 128, base: float = 10000.0, seed: int = 0
) -> pd.DataFrame:
    """Eigenvalues over √d_head of both heads, each of ‖W‖_F = √d_head, at each distance in tokens.

    Returns columns kind ("concentrated", "random"), distance, real, imag: one row an eigenvalue.
    """
    rotary = rotary_of_layer({"rope_theta": base}, 0, d_head)
    frames = []
    for kind, (w_q, w_k) in _heads(d_head, d_model, seed).items():
        for distance in distances:
            products = head_products(w_q, w_k).between(rotary.rotation(distance, d_head))
            values = products.eigenvalues()[0] / d_head**0.5  # (d_head,)
            frame = pd.DataFrame({"real": values.real.tolist(), "imag": values.imag.tolist()})
            frames.append(frame.sort_values(["real", "imag"]).assign(kind=kind, distance=float(distance)))
    return pd.concat(frames, ignore_index=True)[["kind", "distance", "real", "imag"]]


def rotary_trace(
    distances: Sequence[float], *, d_head: int = 32, d_model: int = 128, base: float = 10000.0, seed: int = 0
) -> pd.DataFrame:
    """tr W(Δ)/d_head of both heads, and of the concentrated one by its closed form.

    Returns columns kind ("concentrated", "random", "closed form"), distance, share: one row a distance; the closed form
    also at 300 distances in between, for a smooth line.
    """
    rotary = rotary_of_layer({"rope_theta": base}, 0, d_head)
    rows: list[tuple[str, float, float]] = []
    for kind, (w_q, w_k) in _heads(d_head, d_model, seed).items():
        products = head_products(w_q, w_k)
        traces = [products.between(rotary.rotation(distance, d_head)).trace() for distance in distances]
        rows += [(kind, float(at), trace.item() / d_head) for at, trace in zip(distances, traces, strict=True)]
    between = sorted({*distances, *np.geomspace(0.1, max(*distances, 1), 300).tolist()})
    rows += [("closed form", float(at), concentrated_trace(rotary, at) / d_head) for at in between]
    return pd.DataFrame(rows, columns=["kind", "distance", "share"])


def concentrated_trace(rotary: Rotary, distance: float) -> float:
    """tr W(Δ) = 2 Σ_j cos(Δ f_j) of the head whose W is a projection of rank 2 · (number of frequencies)."""
    return float(2 * np.cos(distance * rotary.frequencies).sum())


def _heads(d_head: int, d_model: int, seed: int) -> dict[str, tuple[Array, Array]]:
    """w_q and w_k, (1, d_head, d_model), of both heads, scaled to ‖W‖_F = √d_head."""
    generator = np.random.default_rng(seed)
    rows = np.linalg.qr(generator.standard_normal((d_model, d_head)))[0].T  # orthonormal, (d_head, d_model)
    w_q, w_k = (generator.standard_normal((1, d_head, d_model)) for _ in range(2))
    scale = (d_head / head_products(w_q, w_k).frobenius_sq().item()) ** 0.5
    return {"concentrated": (rows[None], rows[None]), "random": (w_q * scale, w_k)}
