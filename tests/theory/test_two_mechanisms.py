"""The mean-field equations of two mechanisms: their softmax and their proximal point."""

from functools import partial

import pytest
import torch

from qkrepro.theory.two_mechanisms import coarse_samples, draw_samples, fixed_point, proximal, staying


def test_weights_are_the_diagonal_of_the_softmax():
    h = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    softmax = torch.softmax(h[:, :, None] * h[:, None, :], -1)
    torch.testing.assert_close(staying(h), softmax.diagonal(dim1=1, dim2=2))


def test_the_proximal_point_is_stationary():
    samples = draw_samples(0.3, 64, 0)
    centre = samples.rest.clone()
    h, _ = proximal(centre, samples.target, 0.1, centre)
    h.requires_grad_()
    value = 0.25 * (staying(h) - samples.target).square().sum() + 0.05 * (h - centre).square().sum()
    (slope,) = torch.autograd.grad(value, h)
    assert float(slope.abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("powers", "moment"),
    [((2, 0, 0, 0), 1), ((4, 0, 0, 0), 3), ((0, 0, 6, 0), 15), ((4, 0, 2, 0), 3), ((2, 2, 2, 0), 1), ((3, 1, 1, 1), 0)],
)
def test_coarse_nodes_integrate_small_powers_of_four_independent_gaussians(powers, moment):
    nodes = coarse_samples(0.3, 0.4)
    product = torch.cat([nodes.z, nodes.rest], -1).pow(torch.tensor(powers)).prod(-1)
    assert nodes.mean(product) == pytest.approx(moment, abs=1e-12)


def test_coarse_nodes_give_the_published_state():
    """Order parameters in the data beside the code of arXiv 2402.03902, α = 2, ω = 0.3: θ, q, and m of the other."""
    semantic, positional = (
        fixed_point(2.0, partial(coarse_samples, 0.3), mechanism) for mechanism in ("semantic", "positional")
    )
    assert [semantic["theta"], semantic["q"]] == pytest.approx([0.15856, 0.11415], rel=1e-3)
    assert [positional["m"], positional["q"]] == pytest.approx([0.25857, 0.05001], rel=2e-3)
