"""Time method="exact" for one matrix against a plain eigenvalue pass and against Monte Carlo of equal error.

    python benchmarks/exact.py --dim 512 --locations 101

For each kind of matrix, in CPU seconds of one run: the exact profile; the plain pass, `eigvalsh` of the 2d × 2d form at
every location (without the inversion that must follow it); Monte Carlo. The error of "exact" is its largest distance
to the inversion that it did not choose (saddle-point contours and shared nodes share no step but the reduction of M),
and at most what rounding leaves visible. Monte Carlo needs 1/(4 error²) samples for that error as a standard error.
"""

import math
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from qkrepro.theory.exact_law import _affordable_nodes, _by_shared_nodes, _by_single_laws, _plan, _reduce
from qkrepro.theory.propagation import finite_length_law, signal_propagation, simulate_signal_propagation
from qkrepro.theory.spectrum import factor, qk_matrix, random_spectrum_matrix

ROUNDING = 1e-15  # no error below this is claimed


def main(
    dim: Annotated[int, typer.Option(help="Width d of the matrix.")] = 512,
    locations: Annotated[int, typer.Option(help="Locations of the profile.")] = 101,
    length: Annotated[int, typer.Option(help="Tokens of the walk.")] = 1000,
    samples: Annotated[int, typer.Option(help="Monte Carlo samples that are timed.")] = 2000,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the matrices.")] = 0,
) -> None:
    """Print CPU seconds, errors and the samples of equal error, one block a matrix."""
    torch.set_num_threads(threads)
    theta = torch.linspace(1 / length, 1, locations, dtype=torch.float64)
    typer.echo(f"d = {dim}, {locations} locations, T = {length}, {threads} thread(s), torch {torch.__version__}")
    for name, w in matrices(dim, torch.Generator().manual_seed(seed)).items():
        exact_s, rho = cpu_seconds(lambda w=w: signal_propagation(theta, w, length=length, method="exact"))
        plain_s, _ = cpu_seconds(lambda w=w: plain_pass(w, theta, length))
        drawn_s, _ = cpu_seconds(
            lambda w=w: simulate_signal_propagation(
                theta, w, length=length, samples=samples, generator=torch.Generator().manual_seed(seed)
            )
        )
        error = max(float((rho - other_inversion(w, theta, length)).abs().max()), ROUNDING)
        needed, affordable = 0.25 / error**2, samples * exact_s / drawn_s
        typer.echo(f"\n{name}")
        typer.echo(f"  exact {exact_s:.3f} s, plain eigenvalue pass {plain_s:.2f} s: ratio {plain_s / exact_s:.1f}")
        typer.echo(
            f"  error {error:.0e}; Monte Carlo needs {needed:.0e} samples for it, {needed / affordable:.0e} times"
        )
        typer.echo(f"  as long; in the same time it draws {affordable:.0f}, standard error {0.5 / affordable**0.5:.0e}")
        typer.echo(f"  samples for an error of 1e-8: {0.25e16:.0e}")


def matrices(dim: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Trace 1 each; the last two have one singular value that carries almost all of ‖W‖_F."""
    symmetric = random_spectrum_matrix(dim, 1 / dim, 4 / dim**2, generator=generator)
    general = random_spectrum_matrix(dim, 1 / dim, 4 / dim**2, symmetric=False, generator=generator)
    w_q, w_k = torch.randn(2, 64, dim, generator=generator, dtype=torch.float64)
    low_rank = qk_matrix(w_q, w_k) / dim / 8
    peak = torch.randn(dim, 2, generator=generator, dtype=torch.float64) / math.sqrt(dim)
    return {
        "symmetric": symmetric,
        "not symmetric": general,
        "not symmetric, rank 64": qk_matrix(*factor(low_rank, 64)),
        "symmetric, one eigenvalue dominates": symmetric + 3 * peak[:, :1] @ peak[:, :1].mT,
        "not symmetric, one singular value dominates": general + 3 * peak[:, :1] @ peak[:, 1:].mT,
    }


def plain_pass(w: Tensor, theta: Tensor, length: int) -> Tensor:
    """Eigenvalues of [[γS, √c Mᵀ/2], [√c M/2, 0]] at every location, (locations, 2d)."""
    gamma, det, _, _ = finite_length_law(theta, length, 1.0)
    zero, edge = torch.zeros_like(w), math.sqrt(det) * w / 2
    symmetric = (w + w.mT) / 2
    return torch.stack(
        [
            torch.linalg.eigvalsh(torch.cat([torch.cat([g * symmetric, edge.mT], 1), torch.cat([edge, zero], 1)]))
            for g in gamma
        ]
    )


def other_inversion(w: Tensor, theta: Tensor, length: int) -> Tensor:
    """The profile by the inversion that `signal_propagation` did not take, (locations,)."""
    gamma, det, lower, upper = finite_length_law(theta, length, 1.0)
    scale = float(w.norm()) * math.sqrt(det)
    core, slope = _reduce(w / w.norm()), gamma / math.sqrt(det)
    ends = torch.tensor([[lower], [upper]], dtype=torch.float64) / scale
    nodes, step, edges = _plan(core, slope, ends)
    if nodes > _affordable_nodes(core, slope):
        return _by_shared_nodes(core, slope, edges, nodes, step)
    return _by_single_laws(core, slope, edges)


def cpu_seconds(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


if __name__ == "__main__":
    typer.run(main)
