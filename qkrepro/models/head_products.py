"""All that the spectrum table says of a head, from three d_head × d_head products of its query and key weights.

With W = w_qᵀ w_k: the non-zero eigenvalues of W are those of w_k w_qᵀ, and its singular values those of the Gram
matrices w_q w_qᵀ and w_k w_kᵀ taken together. A rotation between query and key, a covariance of the tokens or a random
draw changes the products, not what is computed from them. NumPy arrays throughout, float64, so that reading a spectrum
need not import PyTorch. Source: book, "The eigenspectrum"; the cyclic property of trace and spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # shapes in types are for mypy and the tests
    from jaxtyping import Float64

Array = NDArray[np.float64]
PIECE = 2**20  # numbers that become float64 at a time, 8 MB


@dataclass(frozen=True)
class HeadProducts:
    """cross = w_k Σ w_qᵀ, gram_q = w_q Σ w_qᵀ, gram_k = w_k Σ w_kᵀ, each (..., d_head, d_head); Σ = I by default."""

    cross: Array
    gram_q: Array
    gram_k: Array
    d_model: int

    @property
    def d_head(self) -> int:
        """Return the number of eigenvalues that can differ from zero."""
        return int(self.cross.shape[-1])

    def between(self, core: Array | None) -> HeadProducts:
        """Return the products of W = w_qᵀ C w_k, C (d_head, d_head): a rotation between query and key, or gains."""
        if core is None:
            return self
        return HeadProducts(core @ self.cross, self.gram_q, core @ self.gram_k @ core.T, self.d_model)

    def trace(self) -> Array:
        """Return tr W, (...)."""
        return np.asarray(self.cross.trace(axis1=-2, axis2=-1))

    def trace_sq(self) -> Array:
        """Return tr W², (...)."""
        return np.asarray((self.cross * self.cross.mT).sum((-2, -1)))

    def frobenius_sq(self) -> Array:
        """Return ‖W‖_F² = tr(gram_q gram_k), (...)."""
        return np.asarray((self.gram_q * self.gram_k).sum((-2, -1)))

    def spectral_norm(self) -> Array:
        """Return ‖W‖_2, (...): the root of the largest eigenvalue of Lᵀ gram_k L, gram_q = L Lᵀ."""
        try:
            half = np.linalg.cholesky(self.gram_q)
        except np.linalg.LinAlgError:  # w_q of deficient rank: the symmetric root, which is slower, always exists
            values, vectors = np.linalg.eigh(self.gram_q)
            half = vectors * np.sqrt(values.clip(min=0))[..., None, :]  # (..., d_head, d_head)
        largest = np.linalg.eigvalsh(half.mT @ self.gram_k @ half)[..., -1]
        return np.asarray(np.sqrt(largest.clip(min=0)))

    def spectral_energy_share(self) -> Array:
        """Return ‖W‖_2² / ‖W‖_F², (...): the share of Σ s² of the singular values s in the largest; 1 for rank one."""
        with np.errstate(invalid="ignore"):  # W = 0 has none: NaN
            return np.asarray(self.spectral_norm() ** 2 / self.frobenius_sq())

    def symmetry_score(self) -> Array:
        """Return ½(1 + tr W²/tr WWᵀ) = ‖(W + Wᵀ)/2‖_F² / ‖W‖_F², (...): 1 symmetric, 0 antisymmetric, ½ by chance."""
        with np.errstate(invalid="ignore"):  # W = 0 has none: NaN
            return np.asarray((1 + self.trace_sq() / self.frobenius_sq()) / 2)

    def eigenvalues(self) -> NDArray[np.complex128]:
        """Return the eigenvalues that can differ from zero, complex128, (..., d_head)."""
        return np.linalg.eigvals(self.cross).astype(np.complex128, copy=False)


def head_products(w_q: Any, w_k: Any) -> HeadProducts:
    """Return the products of all heads of a layer.

    w_q: (heads, d_head, d_model), w_k: (kv_heads, d_head, d_model), floating-point arrays or tensors.
    Head h reads key head h // (heads / kv_heads). Returns products (heads, d_head, d_head). Weights become float64 some
    heads at a time, so that half-precision layers of large models stay small; query and key of a head lie one below
    the other, so that one symmetric product, of half the work, holds all three.
    """
    q, k = as_array(w_q), as_array(w_k)
    heads, d_head, d_model = q.shape
    key_of = np.arange(heads) // (heads // len(k))
    step = min(heads, max(1, PIECE // (2 * d_head * d_model)))
    pair = np.empty((step, 2 * d_head, d_model))
    if q.strides[-1] > q.strides[-2]:  # stored transposed: keep the order in memory, which copies faster
        pair = pair.reshape(step, d_model, 2 * d_head).mT
    products = np.empty((heads, 2 * d_head, 2 * d_head))
    for start in range(0, heads, step):
        here = slice(start, min(start + step, heads))
        rows = pair[: here.stop - start]
        rows[:, :d_head], rows[:, d_head:] = q[here], k[key_of[here]]
        np.matmul(rows, rows.mT, out=products[here])
    queries, keys = slice(None, d_head), slice(d_head, None)
    return HeadProducts(products[:, keys, queries], products[:, queries, queries], products[:, keys, keys], d_model)


def products_in_covariance(w_q: Any, w_k: Any, cov: Any) -> HeadProducts:
    """Return what `head_products` does of M = Σ^½ W Σ^½ for a covariance Σ of the tokens, (d_model, d_model)."""
    q, k, cov = (as_array(values).astype(np.float64, copy=False) for values in (w_q, w_k, cov))
    k = k.repeat(len(q) // len(k), axis=0)  # (heads, d_head, d_model)
    q_cov, k_cov = q @ cov, k @ cov
    return HeadProducts(k_cov @ q.mT, q_cov @ q.mT, k_cov @ k.mT, q.shape[-1])


def as_array(values: Any) -> NDArray[Any]:
    """Return an array as it is, a tensor as one in float64: NumPy does not know bfloat16."""
    return values if isinstance(values, np.ndarray) else np.asarray(values.detach().double().cpu())


def random_products(d_head: int, d_model: int, draws: int, seed: int) -> HeadProducts:
    """Return the products of `draws` heads with independent N(0, 1) weights, (draws, d_head, d_head), from one seed.

    They have exactly the law of w_q, w_k with Gaussian entries at any d_model, in O(d_head³) per draw: a rotation
    of the model's axes brings w_q to a lower triangle (Bartlett's decomposition), and w_k into its first d_head columns
    and the rest.
    """
    generator = np.random.default_rng(seed)
    left = _wishart_root(d_head, d_model, draws, generator)  # w_q in the rotated axes; the rest of it is 0
    first = generator.standard_normal((draws, d_head, d_head))  # w_k there
    gram_k = first @ first.mT
    if d_model > d_head:
        rest = _wishart_root(d_head, d_model - d_head, draws, generator)
        gram_k = gram_k + rest @ rest.mT
    return HeadProducts(first @ left.mT, left @ left.mT, gram_k, d_model)


def _wishart_root(
    size: int, columns: int, draws: int, generator: np.random.Generator
) -> Float64[np.ndarray, "draws size k"]:
    """Return L (draws, size, k) with L Lᵀ distributed as G Gᵀ, G a Gaussian (size, columns); k = min(size, columns)."""
    if columns < size:
        return generator.standard_normal((draws, size, columns))
    chi = np.sqrt(generator.chisquare(columns - np.arange(size), size=(draws, size)))  # the diagonal
    root = np.tril(generator.standard_normal((draws, size, size)), -1)
    root[:, np.arange(size), np.arange(size)] = chi
    return root
