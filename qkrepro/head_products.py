"""All that the spectrum table says of a head, from three d_head × d_head products of its query and key weights.

With W = w_qᵀ w_k: the non-zero eigenvalues of W are those of w_k w_qᵀ, and its singular values those of the Gram
matrices w_q w_qᵀ and w_k w_kᵀ taken together. A rotation between query and key, a covariance of the tokens or a random
draw changes the products, not what is computed from them. Everything is float64.
Source: book, "The eigenspectrum"; the cyclic property of trace and spectrum.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PIECE = 2**21  # numbers that become float64 at a time, 16 MB


@dataclass(frozen=True)
class HeadProducts:
    """cross = w_k Σ w_qᵀ, gram_q = w_q Σ w_qᵀ, gram_k = w_k Σ w_kᵀ, each (..., d_head, d_head); Σ = I by default."""

    cross: Tensor
    gram_q: Tensor
    gram_k: Tensor
    d_model: int

    @property
    def d_head(self) -> int:
        """Number of eigenvalues that can differ from zero."""
        return self.cross.shape[-1]

    def between(self, core: Tensor | None) -> "HeadProducts":
        """The products of W = w_qᵀ C w_k, C (d_head, d_head): a rotation between query and key, or gains."""
        if core is None:
            return self
        return HeadProducts(core @ self.cross, self.gram_q, core @ self.gram_k @ core.mT, self.d_model)

    def trace(self) -> Tensor:
        """tr W, (...)."""
        return self.cross.diagonal(dim1=-2, dim2=-1).sum(-1)

    def trace_sq(self) -> Tensor:
        """tr W², (...)."""
        return (self.cross * self.cross.mT).sum((-2, -1))

    def frobenius_sq(self) -> Tensor:
        """‖W‖_F² = tr(gram_q gram_k), (...)."""
        return (self.gram_q * self.gram_k).sum((-2, -1))

    def spectral_norm(self) -> Tensor:
        """‖W‖_2, (...): the root of the largest eigenvalue of Lᵀ gram_k L, gram_q = L Lᵀ."""
        half, failed = torch.linalg.cholesky_ex(self.gram_q)
        if bool(failed.any()):  # w_q of deficient rank: the symmetric root, which is slower, always exists
            values, vectors = torch.linalg.eigh(self.gram_q)
            half = vectors * values.clamp(min=0).sqrt()[..., None, :]  # (..., d_head, d_head)
        largest: Tensor = torch.linalg.eigvalsh(half.mT @ self.gram_k @ half)[..., -1]
        return largest.clamp(min=0).sqrt()

    def symmetric_share(self) -> Tensor:
        """‖(W + Wᵀ)/2‖_F² / ‖W‖_F², (...): 1 for a symmetric W, 0 for an antisymmetric one, 1/2 by chance."""
        return (1 + self.trace_sq() / self.frobenius_sq()) / 2

    def eigenvalues(self) -> Tensor:
        """The eigenvalues that can differ from zero, complex128, (..., d_head)."""
        eigenvalues: Tensor = torch.linalg.eigvals(self.cross)
        return eigenvalues


def head_products(w_q: Tensor, w_k: Tensor) -> HeadProducts:
    """Products of all heads of a layer; w_q (heads, d_head, d_model), w_k (kv_heads, d_head, d_model), floating point.

    Head h reads key head h // (heads / kv_heads). Returns products (heads, d_head, d_head). Weights become float64 some
    heads at a time, so that half-precision layers of large models stay small and each piece stays in the cache.
    """
    heads, d_head, d_model = w_q.shape
    kv_heads = w_k.shape[0]
    by_key = w_q.view(kv_heads, heads // kv_heads, d_head, d_model)  # query heads that share a key head
    step = max(1, PIECE // (by_key[0].numel() + w_k[0].numel()))
    cross, gram_q, gram_k = (torch.empty(heads, d_head, d_head, dtype=torch.float64) for _ in range(3))
    for start in range(0, kv_heads, step):
        q, k = by_key[start : start + step].double(), w_k[start : start + step].double()[:, None]  # (step, group, …)
        here = slice(start * q.shape[1], (start + len(q)) * q.shape[1])  # heads of this piece
        cross[here] = (k @ q.mT).flatten(0, 1)
        gram_q[here] = (q @ q.mT).flatten(0, 1)
        gram_k[here] = (k @ k.mT).expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    return HeadProducts(cross, gram_q, gram_k, d_model)


def products_in_covariance(w_q: Tensor, w_k: Tensor, cov: Tensor) -> HeadProducts:
    """As `head_products`, of M = Σ^½ W Σ^½ for a covariance Σ of the tokens, (d_model, d_model) float64."""
    group = w_q.shape[0] // w_k.shape[0]
    q, k = w_q.double(), w_k.double().repeat_interleave(group, dim=0)  # (heads, d_head, d_model)
    q_cov, k_cov = q @ cov, k @ cov
    return HeadProducts(k_cov @ q.mT, q_cov @ q.mT, k_cov @ k.mT, q.shape[-1])


def random_products(d_head: int, d_model: int, draws: int, seed: int) -> HeadProducts:
    """Products of `draws` heads with independent N(0, 1) weights, (draws, d_head, d_head).

    Exactly the law of w_q, w_k with Gaussian entries at any d_model, in O(d_head³) a draw: a rotation of the model's
    axes brings w_q to a lower triangle (Bartlett's decomposition), and w_k into its first d_head columns and the rest.
    """
    generator = np.random.default_rng(seed)
    left = _wishart_root(d_head, d_model, draws, generator)  # w_q in the rotated axes; the rest of it is 0
    first = _normal(generator, draws, d_head, d_head)  # w_k there
    gram_k = first @ first.mT
    if d_model > d_head:
        rest = _wishart_root(d_head, d_model - d_head, draws, generator)
        gram_k = gram_k + rest @ rest.mT
    return HeadProducts(first @ left.mT, left @ left.mT, gram_k, d_model)


def _wishart_root(size: int, columns: int, draws: int, generator: np.random.Generator) -> Tensor:
    """L (draws, size, k) with L Lᵀ distributed as G Gᵀ, G a Gaussian (size, columns); k = min(size, columns)."""
    if columns < size:
        return _normal(generator, draws, size, columns)
    chi = np.sqrt(generator.chisquare(columns - np.arange(size), size=(draws, size)))  # the diagonal
    return _normal(generator, draws, size, size).tril(-1) + torch.diag_embed(torch.from_numpy(chi))


def _normal(generator: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(generator.standard_normal(shape))
