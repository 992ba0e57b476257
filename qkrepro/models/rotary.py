"""Rotary positions: the rotation between a query and a key that is `distance` tokens before it, per head.

Under rotary positions the logit is qᵀ R(−Δ) k, so W_QK depends on the distance Δ: W(Δ) = W_qᵀ R(−Δ) W_k, and the
eigenvalues of W(Δ) are those of the small product R(−Δ) W_k W_qᵀ.
Source: Su et al. 2021 (arXiv 2104.09864); pairs of dimensions (j, j + n/2) as `transformers` pairs them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkrepro.errors import CheckpointError

Array = NDArray[np.float64]

# rope types whose frequencies follow from config.json alone; `dynamic` changes them only beyond the trained length
KNOWN = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class Rotary:
    """Frequencies of one layer: (n/2,) float64, radians per token, for the first n of the d_head dimensions."""

    frequencies: Array
    scaling: float = 1.0  # multiplies the rotated queries and keys alike (yarn)

    def rotation(self, distance: float, d_head: int) -> Array:
        """Return R (d_head, d_head) with logit = qᵀ R k for a key `distance` tokens before the query."""
        n, half = 2 * len(self.frequencies), len(self.frequencies)
        angle = distance * self.frequencies  # (n/2,)
        cos, sin = np.cos(angle), np.sin(angle)
        first = np.arange(half)
        matrix = np.eye(d_head)
        matrix[:n, :n] = 0
        matrix[first, first] = matrix[first + half, first + half] = cos * self.scaling**2
        matrix[first, first + half] = sin * self.scaling**2
        matrix[first + half, first] = -sin * self.scaling**2
        return matrix


@np.errstate(all="ignore")  # numbers that are not finite are refused below
def rotary_of_layer(config: Mapping[str, Any], layer: int, d_head: int) -> Rotary:
    """Return the rotary parameters of a layer from a model's config.json, in the present and in the older spelling.

    Raises CheckpointError for a rope type that is not known here, or parameters that are missing or not numbers.
    """
    try:
        rope = _rope_parameters(config, layer)
        kind = rope.get("rope_type", rope.get("type", "default"))
        dim = int(d_head * float(rope.get("partial_rotary_factor", 1.0)))
        base = float(rope.get("rope_theta", 10000.0))
        if kind not in KNOWN:
            raise CheckpointError(f"config.json: rope type must be one of {', '.join(KNOWN)}, got {kind!r:.40}")
        if not (base > 0 and 0 <= dim <= d_head and dim % 2 == 0):
            raise ValueError(f"base {base} and {dim} of {d_head} dimensions")
        plain = base ** (-np.arange(0, dim, 2) / max(dim, 1))  # (n/2,)
        frequencies, scaling = _scaled(kind, plain, rope, config, base)
        if not (bool(np.isfinite(frequencies).all()) and math.isfinite(scaling)):
            raise ValueError("not finite")
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        stated = config.get("rope_parameters", config.get("rope_scaling", config.get("rope_theta")))
        raise CheckpointError(f"config.json: rotary parameters {stated!r:.120} cannot be used") from error
    return Rotary(frequencies, scaling)


def _rope_parameters(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """Return the rope parameters of a layer as one flat mapping, whichever way config.json spells them."""
    kind = layer_type(config, layer)
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = stated.get(kind) if isinstance(stated.get(kind), dict) else None
    rope: dict[str, Any] = dict(stated if nested is None else nested)
    rope.setdefault("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", 10000.0)))
    partial = config.get("rotary_pct", config.get("partial_rotary_factor", 1.0))
    rope.setdefault("partial_rotary_factor", partial)
    if nested is None and kind == "sliding_attention" and "rope_local_base_freq" in config:
        return {"rope_theta": config["rope_local_base_freq"]}  # Gemma 3 as first published: local layers are unscaled
    return rope


def layer_type(config: Mapping[str, Any], layer: int) -> str:
    """Return `sliding_attention` or `full_attention`; every n-th layer is full where config.json gives a pattern n."""
    types = config.get("layer_types")
    if isinstance(types, list) and layer < len(types):
        return str(types[layer])
    pattern = config.get("_sliding_window_pattern", config.get("sliding_window_pattern"))
    return "sliding_attention" if isinstance(pattern, int) and pattern and (layer + 1) % pattern else "full_attention"


def _scaled(
    kind: str, plain: Array, rope: Mapping[str, Any], config: Mapping[str, Any], base: float
) -> tuple[Array, float]:
    """Return the frequencies and scaling of a rope type from the plain frequencies base^(−2j/n)."""
    if kind == "linear":
        return plain / float(rope["factor"]), 1.0
    if kind == "llama3":
        return _llama3(plain, rope), 1.0
    if kind == "yarn":
        return _yarn(plain, rope, config, base)
    return plain, 1.0


def _llama3(plain: Array, rope: Mapping[str, Any]) -> Array:
    """Return the frequencies of Llama 3.1: long waves slowed by `factor`, short ones kept, others interpolated."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(rope["original_max_position_embeddings"]) * plain / (2 * math.pi)  # in the trained length
    kept = ((turns - low) / (high - low)).clip(0, 1)
    return plain * (kept + (1 - kept) / factor)


def _yarn(plain: Array, rope: Mapping[str, Any], config: Mapping[str, Any], base: float) -> tuple[Array, float]:
    """Return the frequencies and scaling of YaRN (arXiv 2309.00071), as `transformers` computes them."""
    length, n = float(rope["original_max_position_embeddings"]), 2 * len(plain)
    factor = float(rope.get("factor") or config["max_position_embeddings"] / length)

    def dimension(turns: float) -> float:
        return n * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(float(rope.get("beta_fast") or 32)), dimension(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n - 1)
    ramp = ((np.arange(len(plain)) - low) / max(high - low, 0.001)).clip(0, 1)
    return plain * (1 - ramp + ramp / factor), _yarn_scaling(rope, factor)


def _yarn_scaling(rope: Mapping[str, Any], factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(float(rope["mscale"])) / mscale(float(rope["mscale_all_dim"]))
    return mscale(1.0)
