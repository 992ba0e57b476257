"""The running covariance of increments: its definition, when it moves, and that a saved one continues exactly."""

import numpy as np
import pytest
import torch
from torch import nn

from qkrepro.errors import ArgumentError
from qkrepro.models.transformer import LanguageModel, ModelConfig
from qkrepro.theory.tokens import increment_covariance
from qkrepro.training.locater import LocAteR
from qkrepro.training.running_covariance import IncrementCovariances


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(20, (3, 12), generator=generator(seed))


def small_model() -> LanguageModel:
    return LanguageModel(ModelConfig(20, d_model=16, d_ff=16, layers=2, heads=2, dropout=0.0), generator(1))


def test_covariance_is_that_of_the_steps_within_sequences():
    x = torch.randn(3, 7, 4, generator=generator(), dtype=torch.float64)
    steps = np.concatenate([np.diff(sequence, axis=0) for sequence in x.numpy()])
    np.testing.assert_allclose(increment_covariance(x), np.cov(steps.T))


@pytest.mark.parametrize("kind", ["ours", "theirs", "length first"])
def test_running_mean_starts_at_the_first_batch_and_follows_with_its_decay(kind):
    torch.manual_seed(0)
    if kind == "ours":
        model = small_model()
        batches = [tokens(seed) for seed in range(3)]
        seen = [model.trace(batch)[0].inputs for batch in batches]
    else:
        model = nn.TransformerEncoderLayer(16, 2, 16, 0.0, batch_first=kind == "theirs")
        batches = [torch.randn(3, 12, 16, generator=generator(seed)) for seed in range(3)]
        seen = [batch if kind == "theirs" else batch.transpose(0, 1) for batch in batches]
    sigma = IncrementCovariances(model, decay=0.8)
    for batch in batches:
        model(batch)
    first, second, third = (increment_covariance(x.detach()) for x in seen)
    torch.testing.assert_close(sigma()[0], 0.64 * first + 0.16 * second + 0.2 * third)
    assert not sigma()[0].requires_grad


def test_every_layer_has_its_own_and_evaluation_moves_none():
    model = small_model()
    sigma = IncrementCovariances(model)
    with pytest.raises(ArgumentError, match="after a forward pass"):
        sigma()
    model(tokens(0))
    traces = model.trace(tokens(0))
    for value, trace in zip(sigma(), traces, strict=True):
        torch.testing.assert_close(value, increment_covariance(trace.inputs.detach()))
    before = sigma.values
    model.eval()
    model(tokens(5))
    assert all(torch.equal(a, b) for a, b in zip(before, sigma(), strict=True))


def test_saved_values_continue_exactly():
    model = small_model()
    whole = IncrementCovariances(model)
    model(tokens(0))
    cut = IncrementCovariances(model)
    cut.values = whole.values
    model(tokens(1))
    assert all(torch.equal(a, b) for a, b in zip(whole(), cut(), strict=True))


@pytest.mark.parametrize("theirs", [True, False])
def test_penalty_on_tokens_is_that_of_the_whitened_matrix_for_both_kinds_of_layers(theirs):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(16, 2, batch_first=True) if theirs else small_model()
    sigma = IncrementCovariances(model)
    x = torch.randn(3, 12, 16, generator=generator(2))
    _ = model(x, x, x) if theirs else model(tokens(0))
    expected = 0.0
    for layer, covariance in enumerate(sigma()):
        values, vectors = torch.linalg.eigh(covariance.double())
        root = vectors @ values.clamp_min(0).sqrt().diag() @ vectors.mT
        if theirs:
            heads = zip(*(w.view(2, 8, 16) for w in model.in_proj_weight.double().chunk(3)[:2]), strict=True)
        else:
            heads = ((h.w_q.double(), h.w_k.double()) for h in model.qk_weights() if h.layer == layer)
        for w_q, w_k in heads:
            m = root @ w_q.mT @ w_k @ root
            expected += 0.1 * (m.square().sum() + (m.trace() - 2) ** 2)
    penalty = LocAteR(0.1, 2.0, tokens=sigma)(model)
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-4, atol=1e-4)
    penalty.backward()


def test_decay_outside_its_range_is_refused():
    with pytest.raises(ArgumentError, match="decay"):
        IncrementCovariances(small_model(), decay=1.0)
