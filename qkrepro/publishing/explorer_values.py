"""The values of the page "The plane", computed once by the package and kept as one compact file: `qkrepro explorer`.

Three tables. The first layer: the logits of one stack are ξ·like + s·noise, so two matrices give its attention at every
point of the plane. Depth: both ratios of chapter "Both at once" over 24 layers, on a grid of the plane, over ten seeds.
The law: the distribution function of the centred logit of a random walk, which gives ρ_θ for every mean, dispersion,
temperature and length. Numbers are kept as integers much coarser than rounding (`Packed`), so that processors agree.
Source: book, "Both at once"; theory, the exact law (ours).
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Generator, Tensor

from qkrepro.errors import ArgumentError
from qkrepro.evidence.verdicts import HALF
from qkrepro.files import write_atomically
from qkrepro.theory.attention import attention_logits, causal_mask, piecewise_linear_attention, softmax_attention
from qkrepro.theory.depth import LAYER_NORM_EPS, Stack, layer_entropy
from qkrepro.theory.exact_law import weighted_chi_square_tail
from qkrepro.theory.rank import rank_residual
from qkrepro.theory.spectrum import random_spectrum_matrix
from qkrepro.theory.tokens import TOKEN_LAWS, TokenLaw
from qkrepro.training.records import environment

VALUES = Path("book", "_static", "explorer", "values.js")  # the committed record, in a checkout
PREFIX = "window.explorerValues = "
SOFTMAXES = ("true", "linearised")
LAYERS, LENGTH, DIM, SEEDS = 24, 64, 64, 10  # sizes and seeds of chapter "Both at once"
POSITIVE = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40)
MEANS = (*(-float(m) for m in reversed(POSITIVE)), 0.0, *(float(m) for m in POSITIVE))  # ξ/λ
DISPERSIONS = tuple(round(0.25 * 2 ** (step / 2), 4) for step in range(15))  # √(dσ²)/λ, 0.25 to 32
LAW_DIMS = (2, 4, 8, 16, 64)  # numbers of eigenvalues whose exact law is kept
MANY = 1024  # eigenvalues, for which the page draws the Gaussian form; the record holds its largest error
ANGLES = {dim: 41 if dim == 2 else 25 for dim in LAW_DIMS}  # of arctan(dispersion √d / |ξ|): 0 is equal eigenvalues
CENTRED = 8  # from so many on points count from the mean; with fewer the law has a kink at 0, so they count from there
SLOPES = np.linspace(-math.sqrt(3), math.sqrt(3), 25)  # γ/√c of a token, from the first to the last
POINTS = np.sinh(np.linspace(-1, 1, 65) * math.asinh(40)) / 4  # logit in standard deviations, −10 to 10, dense at 0
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Packed:
    """An array as integers times `scale`; NaN has no place in it."""

    integers: npt.NDArray[Any]
    scale: float

    @property
    def values(self) -> Array:
        """The numbers that a reader of the file sees."""
        return self.integers * self.scale

    def as_json(self) -> dict[str, Any]:
        """Shape, type, scale and the bytes in little-endian order as base64."""
        raw = self.integers.astype(self.integers.dtype.newbyteorder("<")).tobytes()
        kind = {"data": base64.b64encode(raw).decode(), "type": self.integers.dtype.name, "scale": self.scale}
        return {"shape": list(self.integers.shape), **kind}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Packed":
        """What `as_json` gave. Raises ArgumentError when the bytes do not fill the shape."""
        flat = np.frombuffer(base64.b64decode(entry["data"]), np.dtype(entry["type"]).newbyteorder("<"))
        if flat.size != math.prod(entry["shape"]):
            raise ArgumentError(f"an array has {flat.size} entries; allowed: as many as its shape {entry['shape']}")
        return cls(flat.reshape(entry["shape"]), entry["scale"])


def pack(values: Array, kind: str, scale: float) -> Packed:
    """Round values to integers of `kind` (uint8, uint16, int16) in steps of `scale`; what lies outside is clipped."""
    limits = np.iinfo(kind)
    return Packed(np.rint(values / scale).clip(limits.min, limits.max).astype(kind), scale)


def plane(means: Sequence[float] = MEANS, dispersions: Sequence[float] = DISPERSIONS) -> tuple[Tensor, Tensor]:
    """ξ/λ and √(dσ²)/λ of every cell, mean by mean: float64, (cells, 1, 1) each."""
    pairs = torch.tensor([(mean, dispersion) for mean in means for dispersion in dispersions], dtype=torch.float64)
    traces, spreads = pairs.T[..., None, None]
    return traces, spreads


def course(
    tokens: TokenLaw, softmax: str, seed: int, cells: tuple[Tensor, Tensor] | None = None, layers: int = LAYERS
) -> Tensor:
    """Both ratios over depth in one stack for every cell: float64, (2, layers, cells), entropy first.

    The entropy ratio is that of a layer's attention to uniform attention, the residual ratio that of the tokens after
    the layer to the input's own, as in `qkrepro.theory.depth.depth_experiment`, with its draws. "linearised": the
    weights are the clipped linear ones, divided by their sum over the row.
    """
    traces, spreads = plane() if cells is None else cells
    stack = Stack(layers=layers, length=LENGTH, dim=DIM, tokens=tokens)
    generator, mask = Generator().manual_seed(seed), causal_mask(LENGTH)
    x = stack.draw_input(generator)
    first, x = rank_residual(x), x.expand(len(traces), -1, -1)  # (cells, T, d)
    ratios = []
    for _ in range(layers):
        unit = random_spectrum_matrix(DIM, 0.0, 1.0, generator=generator)  # (d, d)
        w = traces / DIM * torch.eye(DIM, dtype=torch.float64) + spreads / math.sqrt(DIM) * unit  # (cells, d, d)
        logits = attention_logits(x, w)  # (cells, T, T)
        if softmax == "true":
            attention = softmax_attention(logits, mask=mask)
        else:
            attention = piecewise_linear_attention(logits, mask=mask)
            attention = attention / attention.sum(-1, keepdim=True)
        values = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64) / math.sqrt(DIM)
        x = torch.nn.functional.layer_norm(attention @ x @ values, (DIM,), eps=LAYER_NORM_EPS)
        ratios.append(torch.stack([layer_entropy(attention) / stack.entropy_scale, rank_residual(x) / first]))
    return torch.stack(ratios, dim=1)


def depth_tables(courses: Array) -> dict[str, Packed]:
    """Means over seeds, half widths of their 95% t intervals, and what is safe, from courses (seeds, 2, layers, cells).

    `mean` and `half`: (2, layers, cells) in steps of 1/200. `safe`: (layers, cells), 1 where the lower ends of the
    first layer's entropy ratio and of this layer's residual ratio are both at least one half (`verdict_rules`).
    """
    seeds = len(courses)
    mean = courses.mean(0)
    half = stats.t.ppf(0.975, seeds - 1) * courses.std(0, ddof=1) / math.sqrt(seeds)
    low = mean - half
    safe = (low[0, 0] >= HALF) & (low[1] >= HALF)
    return {"mean": pack(mean, "uint8", 1 / 200), "half": pack(half, "uint8", 1 / 200), "safe": pack(safe, "uint8", 1)}


def first_layer(tokens: TokenLaw, seed: int = 0) -> dict[str, Packed]:
    """What the first layer of a stack is at every point of the plane, as the page combines it.

    Its logits over the temperature are (ξ/λ)·like + (s/λ)·noise, both (T, T), and its eigenvalues over the temperature
    ξ/(λd) + s/(λ√d)·spectrum, (d,). s is the dispersion √(dσ²).
    """
    generator = Generator().manual_seed(seed)
    x = Stack(length=LENGTH, dim=DIM, tokens=tokens).draw_input(generator)
    unit = random_spectrum_matrix(DIM, 0.0, 1.0, generator=generator)
    like, noise = attention_logits(x, torch.eye(DIM)) / DIM, attention_logits(x, unit) / math.sqrt(DIM)
    spectrum = torch.linalg.eigvalsh(unit)
    named = {"like": like, "noise": noise, "spectrum": spectrum}
    return {name: pack(each.numpy(), "int16", 1 / 4096) for name, each in named.items()}


def law_spectrum(dim: int) -> Array:
    """`dim` eigenvalues of mean 0 and variance 1 at the quantiles of the normal law, (dim,), symmetric about 0."""
    quantiles = stats.norm.ppf((np.arange(dim) + 0.5) / dim)
    spread: Array = quantiles / np.sqrt(np.mean(quantiles**2))
    return spread


def standard_law(dim: int, angles: Iterable[float], slopes: Array = SLOPES, points: Array = POINTS) -> Array:
    """P(logit in standard deviations <= point) for each angle, slope and point: float64, (angles, slopes, points).

    The centred logit of token i on a random walk is √c (g UᵀMU + ZᵀMU), g = γ/√c; M has the eigenvalues
    (cos φ + sin φ z)/√d with z from `law_spectrum`. Its mean is √c g tr M, its variance c (2g² + 1) tr M².
    Points count from the mean for `dim` >= CENTRED, else from 0.
    """
    spectrum, rows = law_spectrum(dim), []
    g = slopes[:, None]  # (slopes, 1)
    for angle in angles:
        eigenvalues = (math.cos(angle) + math.sin(angle) * spectrum) / math.sqrt(dim)  # (d,), tr M² = 1
        root = np.sqrt(g**2 + 1)
        weights = np.concatenate([eigenvalues * (g + root) / 2, eigenvalues * (g - root) / 2], axis=1)  # (slopes, 2d)
        start = g * eigenvalues.sum() * (dim >= CENTRED)  # (slopes, 1)
        levels = start + points * np.sqrt(2 * g**2 + 1)  # (slopes, points)
        every = np.repeat(weights, len(points), axis=0)
        tail = weighted_chi_square_tail(torch.from_numpy(every), torch.from_numpy(levels.ravel()))
        rows.append(1 - tail.numpy().reshape(levels.shape))
    return np.stack(rows)


def gaussian_error(dim: int, angles: Sequence[float] = (0.0, 0.4, 0.8, 1.2, math.pi / 2)) -> float:
    """Largest distance of the normal distribution function from `standard_law`, on a coarser grid of its arguments."""
    points = np.linspace(-3, 3, 25)
    exact = standard_law(dim, angles, SLOPES[::6], points)
    return float(np.abs(exact - stats.norm.cdf(points)).max())


def compute_values(workers: int = 2) -> dict[str, Any]:
    """All that the file holds, as JSON values: grid, provenance, and the packed arrays. Some minutes of two cores."""
    arrays: dict[str, Packed] = {}
    made = {key: value for key, value in environment().items() if key != "processor"}
    jobs = [(law, softmax, seed) for law in TOKEN_LAWS for softmax in SOFTMAXES for seed in range(SEEDS)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        laws = pool.map(_law_job, reversed(LAW_DIMS))  # the largest first
        courses = list(pool.map(_course_job, jobs))
        arrays |= {
            f"law/{dim}": pack(law, "uint16", 1 / 65535) for dim, law in zip(reversed(LAW_DIMS), laws, strict=True)
        }
    for start in range(0, len(jobs), SEEDS):
        law, softmax, _ = jobs[start]
        tables = depth_tables(np.stack(courses[start : start + SEEDS]))
        arrays |= {f"depth/{law}/{softmax}/{name}": table for name, table in tables.items()}
    for law in TOKEN_LAWS:
        arrays |= {f"first/{law}/{name}": table for name, table in first_layer(law).items()}
    return {
        "made": made | {"command": "qkrepro explorer"},
        "sizes": {"layers": LAYERS, "length": LENGTH, "dim": DIM, "seeds": SEEDS},
        "grid": {"means": MEANS, "dispersions": DISPERSIONS, "laws": TOKEN_LAWS, "softmaxes": SOFTMAXES},
        "law": {
            "dims": LAW_DIMS,
            "many": MANY,
            "gaussian_error": round(gaussian_error(MANY), 4),
            "centred": CENTRED,
            "slopes": _short(SLOPES),
            "points": _short(POINTS),
        },
        "arrays": {name: arrays[name].as_json() for name in sorted(arrays)},
    }


def write_values(path: Path, values: Mapping[str, Any]) -> None:
    """Write the values as a script that sets `window.explorerValues`: a page opened from disk may load no JSON."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False).replace('},"', '},\n"')
    write_atomically(path, f"{PREFIX}{text};\n".encode())


def read_values(path: Path) -> dict[str, Any]:
    """The values of a file that `write_values` wrote, its arrays as `Packed`. Raises ArgumentError for another file."""
    try:
        text = path.read_text(encoding="utf-8")
        values: dict[str, Any] = json.loads(text.removeprefix(PREFIX).removesuffix(";\n"))
        return values | {"arrays": {name: Packed.from_json(entry) for name, entry in values["arrays"].items()}}
    except FileNotFoundError as error:
        raise ArgumentError(f"{path} is not there; run `qkrepro explorer`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"{path} is damaged ({error}); run `qkrepro explorer`") from error


def _course_job(job: tuple[TokenLaw, str, int]) -> Array:
    torch.set_num_threads(1)
    ratios: Array = course(*job).numpy()
    return ratios


def _law_job(dim: int) -> Array:
    torch.set_num_threads(1)
    return standard_law(dim, np.linspace(0, math.pi / 2, ANGLES[dim]))


def _short(values: Array) -> list[float]:
    return [round(float(value), 9) for value in values]
