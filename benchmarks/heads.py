"""Time the spectrum of every head of a model against eigenvalues of the full products and against `torch.linalg.eig`.

    python benchmarks/heads.py --layers 24 --heads 16 --d-model 1024 --d-head 64

The full d_model × d_model products are timed on `--full-heads` heads and scaled to all of them; everything else runs on
all heads. Each route is timed `--repeats` times in turn, and the medians of one run give the ratios. The last lines
say how far the routes' results lie apart.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from qkrepro.theory.spectrum import matrix_moments, qk_eigenvalues, qk_matrix, qk_moments
from qkrepro.theory.xavier import xavier_qk


def main(
    layers: Annotated[int, typer.Option(help="Layers of the model.")] = 24,
    heads: Annotated[int, typer.Option(help="Heads a layer.")] = 16,
    d_model: Annotated[int, typer.Option(help="Width of the model.")] = 1024,
    d_head: Annotated[int, typer.Option(help="Width of a head.")] = 64,
    full_heads: Annotated[int, typer.Option(help="Heads whose full product is timed; the time is scaled up.")] = 3,
    repeats: Annotated[int, typer.Option(help="Timings of each route; the median counts.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Print seconds a model and ratios, from one run."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)
    w_q, w_k = xavier_qk(
        d_model, d_head, batch=(layers, heads), generator=generator
    )  # (layers, heads, d_head, d_model)
    some_q, some_k = w_q.flatten(0, 1)[:full_heads], w_k.flatten(0, 1)[:full_heads]
    routes: dict[str, tuple[Callable[[], object], float]] = {
        "eigenvalues, ours": (lambda: qk_eigenvalues(w_q, w_k), 1.0),
        "moments, ours": (lambda: qk_moments(w_q, w_k), 1.0),
        "eig of small products, float64": (lambda: small_eig(w_q, w_k), 1.0),
        "eig of small products, float32": (lambda: small_eig(w_q.float(), w_k.float()), 1.0),
        "eigvals of full products, scaled": (lambda: full_eigvals(some_q, some_k), layers * heads / len(some_q)),
        "moments of full products, scaled": (lambda: full_moments(some_q, some_k), layers * heads / len(some_q)),
    }
    seconds = median_seconds(routes, repeats)
    typer.echo(
        f"{layers} layers x {heads} heads, d_model {d_model}, d_head {d_head}, {threads} thread(s), median of {repeats}"
    )
    typer.echo(
        f"full products: {len(some_q)} of {layers * heads} heads timed, scaled to all; torch {torch.__version__}"
    )
    for name, value in seconds.items():
        typer.echo(f"{name:35s} {value:10.3f} s")
    print_ratios(seconds)
    print_agreement(some_q, some_k)


def small_eig(w_q: Tensor, w_k: Tensor) -> Tensor:
    """Eigenvalues by way of the eigenvectors too, from the d_head × d_head product."""
    return torch.linalg.eig(w_k @ w_q.mT).eigenvalues


def full_eigvals(w_q: Tensor, w_k: Tensor) -> Tensor:
    """Eigenvalues of the d_model × d_model product, head by head."""
    return torch.stack([torch.linalg.eigvals(qk_matrix(q, k)) for q, k in zip(w_q, w_k, strict=True)])


def full_moments(w_q: Tensor, w_k: Tensor) -> list[float]:
    """Spectral norm of the d_model × d_model product, which dominates the cost of the moments, head by head."""
    return [float(matrix_moments(qk_matrix(q, k)).spectral_norm) for q, k in zip(w_q, w_k, strict=True)]


def median_seconds(routes: dict[str, tuple[Callable[[], object], float]], repeats: int) -> dict[str, float]:
    """Median wall seconds a route, times its scale; routes take turns so that a busy machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in routes}
    for _ in range(repeats):
        for name, (call, scale) in routes.items():
            start = time.perf_counter()
            call()
            times[name].append(scale * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def print_ratios(seconds: dict[str, float]) -> None:
    ours = seconds["eigenvalues, ours"]
    both = ours + seconds["moments, ours"]
    full = seconds["eigvals of full products, scaled"]
    full_both = full + seconds["moments of full products, scaled"]
    typer.echo(f"eigenvalues: full products / ours           {full / ours:10.1f}")
    typer.echo(f"eigenvalues: small eig, float64 / ours      {seconds['eig of small products, float64'] / ours:10.2f}")
    typer.echo(f"eigenvalues: small eig, float32 / ours      {seconds['eig of small products, float32'] / ours:10.2f}")
    typer.echo(f"eigenvalues and moments: full / ours        {full_both / both:10.1f}")


def print_agreement(w_q: Tensor, w_k: Tensor) -> None:
    """Largest distance from an eigenvalue of ours to the nearest one of another route, over the largest modulus."""
    ours = qk_eigenvalues(w_q, w_k)  # (heads, d_head)
    others = {
        "full products": full_eigvals(w_q, w_k),
        "small eig, float64": small_eig(w_q, w_k),
        "small eig, float32": small_eig(w_q.float(), w_k.float()).to(ours.dtype),
    }
    for name, values in others.items():
        nearest = (ours[:, :, None] - values[:, None, :]).abs().amin(-1)  # (heads, d_head)
        typer.echo(f"largest relative distance to {name:20s} {float(nearest.max() / ours.abs().max()):.1e}")


if __name__ == "__main__":
    typer.run(main)
