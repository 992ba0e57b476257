"""The mean-field equations of two mechanisms: their softmax and their proximal point."""

import torch

from qkrepro.theory.two_mechanisms import draw_samples, proximal, staying


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
