"""Softmax, its linearisation, masks, entropy and gradient mass against PyTorch's autograd and closed forms."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkrepro.errors import ArgumentError, QKReproError, ShapeError
from qkrepro.theory.attention import (
    attention_entropy,
    attention_logits,
    causal_mask,
    piecewise_linear_attention,
    saturation,
    softmax_attention,
    softmax_gradient_mass,
)
from qkrepro.theory.spectrum import qk_matrix

ATTENTIONS = [softmax_attention, piecewise_linear_attention, saturation]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.floats(0.1, 20), st.integers(0, 1000))
def test_softmax_equals_pytorchs_scaled_dot_product_attention(length, temperature, seed):
    logits = gaussian(2, length, length, seed=seed)
    identity = torch.eye(length, dtype=torch.float64).expand(2, length, length)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        logits, identity, identity, attn_mask=causal_mask(length), scale=1 / temperature
    )
    torch.testing.assert_close(softmax_attention(logits, temperature, mask=causal_mask(length)), theirs)


def test_linearisation_is_the_first_order_of_softmax_by_autograd():
    centre, step = torch.full((6,), 1.7, dtype=torch.float64), 1e-3 * gaussian(6, seed=2)
    jacobian = torch.autograd.functional.jacobian(lambda x: torch.softmax(x / 2.5, -1), centre)  # at equal logits
    expected = torch.softmax(centre / 2.5, -1) + jacobian @ step
    torch.testing.assert_close(piecewise_linear_attention(centre + step, 2.5), expected, rtol=1e-13, atol=1e-15)


def test_linearisation_clips_at_its_two_thresholds():
    logits = torch.tensor([-3.0, 0.0, 0.0, 3.0 * 1.25], dtype=torch.float64)  # T = 4, mean 0.1875
    mean = float(logits.mean())
    weights = piecewise_linear_attention(logits, 1.25)
    assert float(weights[0]) == 0.0  # -3 - mean < -λ
    assert float(weights[1]) == pytest.approx((1 - mean / 1.25) / 4, rel=1e-15)
    assert float(weights[3]) == pytest.approx((1 + (3.75 - mean) / 1.25) / 4, rel=1e-15)
    assert saturation(logits, 1.25).tolist() == [-1, 0, 0, 0]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 10), st.floats(0.05, 5), st.integers(0, 1000))
def test_gradient_is_zero_exactly_at_saturated_keys(length, temperature, seed):
    logits = gaussian(length, seed=seed).requires_grad_()
    weights = piecewise_linear_attention(logits, temperature)
    passes = []
    for weight in weights:
        (gradient,) = torch.autograd.grad(weight, logits, retain_graph=True)
        passes.append(bool((gradient != 0).any()))
    assert [state == 0 for state in saturation(logits.detach(), temperature).tolist()] == passes


def test_upper_threshold_grows_with_the_number_of_keys():
    logits = torch.zeros(5, dtype=torch.float64)
    logits[0] = 5.01  # minus the mean 1.002 is 4.008 >= λ (T - 1) = 4
    assert saturation(logits).tolist() == [1, -1, -1, -1, -1]
    assert piecewise_linear_attention(logits).tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("attend", ATTENTIONS)
def test_a_causal_row_equals_attention_over_its_visible_keys_alone(attend):
    logits = 2 * gaussian(3, 7, 7, seed=4)
    rows = attend(logits, 0.9, mask=causal_mask(7))
    for t in range(1, 8):
        torch.testing.assert_close(rows[:, t - 1, :t], attend(logits[:, t - 1, :t], 0.9))
        hidden = rows[:, t - 1, t:]
        assert bool((hidden == (-1 if attend is saturation else 0)).all())


def test_rows_of_the_linearisation_sum_to_one_until_something_is_clipped():
    small, large = 0.1 * gaussian(20, seed=1), 20 * gaussian(20, seed=1)
    assert float(piecewise_linear_attention(small).sum()) == pytest.approx(1.0, rel=1e-14)
    assert float(piecewise_linear_attention(large).sum()) > 1.5


def test_logits_are_the_bilinear_form_of_query_and_key():
    x, w = gaussian(2, 5, 3, seed=6), gaussian(3, 3, seed=7)
    logits = attention_logits(x, w)
    assert float(logits[1, 4, 2]) == pytest.approx(float(x[1, 4] @ w @ x[1, 2]), rel=1e-13)


def test_logits_of_the_qk_matrix_are_the_products_of_queries_and_keys():
    x, w_q, w_k = gaussian(2, 5, 3, seed=6), gaussian(2, 3, seed=8), gaussian(2, 3, seed=9)
    queries, keys = x @ w_q.mT, x @ w_k.mT  # as a layer computes them
    torch.testing.assert_close(attention_logits(x, qk_matrix(w_q, w_k)), queries @ keys.mT)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.floats(0.01, 30), st.integers(0, 1000))
def test_entropy_equals_pytorchs_categorical_and_lies_between_zero_and_log_length(length, scale, seed):
    logits = scale * gaussian(length, seed=seed)
    entropy = attention_entropy(softmax_attention(logits))
    theirs = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy, theirs, rtol=1e-9, atol=1e-12)
    assert 0 <= float(entropy) <= math.log(length) + 1e-12


@pytest.mark.parametrize("peak", [1.0, 50.0, 300.0])
def test_entropy_and_gradient_mass_of_a_peak_keep_their_digits(peak):
    logits = torch.zeros(256, dtype=torch.float64)
    logits[17] = peak
    attention = softmax_attention(logits)
    with localcontext(prec=400):
        small = 1 / (Decimal(peak).exp() + 255)
        large = 1 - 255 * small
        entropy = -255 * small * small.ln() - large * large.ln()
        mass = 1 - 255 * small**2 - large**2
    assert float(attention_entropy(attention)) == pytest.approx(float(entropy), rel=1e-12)
    assert float(softmax_gradient_mass(attention).total) == pytest.approx(float(mass), rel=1e-12)


def test_gradient_mass_is_the_diagonal_of_the_softmax_jacobian():
    logits = gaussian(6, seed=3)
    jacobian = torch.autograd.functional.jacobian(lambda x: torch.softmax(x, -1), logits)
    mass = softmax_gradient_mass(softmax_attention(logits))
    torch.testing.assert_close(mass.site, jacobian.diagonal())
    torch.testing.assert_close(mass.total, 1 - softmax_attention(logits).square().sum())


def test_uniform_attention_has_the_greatest_entropy_and_gradient_mass():
    uniform = softmax_attention(torch.zeros(3, 8))
    torch.testing.assert_close(attention_entropy(uniform), torch.full((3,), math.log(8), dtype=torch.float64))
    torch.testing.assert_close(softmax_gradient_mass(uniform).total, torch.full((3,), 7 / 8, dtype=torch.float64))


@pytest.mark.parametrize("attend", ATTENTIONS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0.0}, ArgumentError, "temperature must be finite and > 0"),
        ({"temperature": -1.0}, ArgumentError, "temperature must .*, got -1.0"),
        ({"temperature": math.nan}, ArgumentError, "temperature must .*, got nan"),
        (
            {"logits": torch.tensor([0.0, math.inf])},
            ArgumentError,
            "logits must be finite, got 1 non-finite values of 2",
        ),
        ({"logits": torch.tensor(1.0)}, ShapeError, r"logits must have shape .*, got \(\)"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, ShapeError, r"mask must broadcast to the shape .*, got \(3,\)"),
        ({"mask": torch.ones(2)}, ArgumentError, "mask must have dtype .*, got torch.float32"),
        ({"mask": torch.zeros(2, dtype=torch.bool)}, ArgumentError, "mask must leave at least one visible key per row"),
    ],
)
def test_bad_arguments_are_refused_by_name(attend, arguments, error, message):
    with pytest.raises(error, match=message):
        attend(**({"logits": torch.zeros(2), "temperature": 1.0} | arguments))


@pytest.mark.parametrize("measure", [attention_entropy, softmax_gradient_mass])
@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (torch.tensor([0.5, 0.7]), "a sum 0.2 away from 1"),
        (torch.tensor([-0.5, 1.5]), "smallest weight -0.5"),
        (torch.tensor([math.nan, 1.0]), "attention must be finite, got 1 non-finite"),
    ],
)
def test_what_is_no_probability_has_no_entropy(measure, attention, message):
    with pytest.raises(QKReproError, match=message):
        measure(attention)


def test_logits_of_tokens_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"tokens must have shape .*, got \(4, 3\)"):
        attention_logits(torch.ones(4, 3), torch.eye(2))
