import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.theory.attention import attention_entropy, attention_logits, causal_mask, softmax_attention
from qkrepro.theory.entropy import (
    BOUND_KINDS,
    causal_entropy_bounds,
    entropy_and_bounds,
    entropy_lower_bound,
    extremal_logits,
    high_temperature_deficit,
    log_entropy_lower_bound,
)
from qkrepro.theory.spectrum import matrix_moments, random_spectrum_matrix

SIGMAS = st.floats(0, 30)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


@settings(deadline=None)
@given(st.integers(2, 200), SIGMAS)
def test_bound_is_attained_by_its_extremal_logits(length, sigma):
    logits = extremal_logits(sigma, length)
    assert float(logits.sum()) == pytest.approx(0, abs=1e-9)
    assert float(logits.norm()) == pytest.approx(sigma, abs=1e-9)
    assert float(entropy_lower_bound(sigma, length)) == pytest.approx(float(entropy(logits)), rel=1e-6, abs=1e-12)


@settings(deadline=None)
@given(st.integers(2, 30), SIGMAS, st.integers(0, 10_000))
def test_bound_is_never_violated(length, sigma, seed):
    logits = torch.randn(200, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits = logits - logits.mean(-1, keepdim=True)
    logits = sigma * logits / logits.norm(dim=-1, keepdim=True)
    assert float(entropy(logits).min()) >= float(entropy_lower_bound(sigma, length)) - 1e-9


@settings(deadline=None)
@given(st.floats(0.01, 8))
def test_bound_is_the_least_entropy_over_the_whole_circle_of_three_logits(sigma):
    angle = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    first = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64) / 2**0.5
    second = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64) / 6**0.5
    logits = sigma * (angle.cos()[:, None] * first + angle.sin()[:, None] * second)
    assert float(entropy_lower_bound(sigma, 3)) == pytest.approx(float(entropy(logits).min()), rel=1e-5)


@pytest.mark.parametrize("length", [2, 64, 10**6])
@pytest.mark.parametrize("sigma", [1e-9, 0.3, 20.0, 45.0, 800.0, 1e6])
def test_logarithm_of_the_bound_agrees_with_fifty_digit_arithmetic(sigma, length):
    with mpmath.workdps(50):
        t, s = mpmath.mpf(length), mpmath.mpf(sigma)
        u = (t - 1) * mpmath.exp(-s * mpmath.sqrt(t / (t - 1)))
        exact = mpmath.log(mpmath.log1p(u) + s * mpmath.sqrt(t / (t - 1)) * u / (1 + u))
    assert float(log_entropy_lower_bound(sigma, length)) == pytest.approx(float(exact), rel=1e-12, abs=1e-12)


def test_bound_is_log_length_for_equal_logits_and_falls_with_their_norm():
    values = entropy_lower_bound(torch.linspace(0, 50, 101), 64)
    assert float(values[0]) == pytest.approx(math.log(64), rel=1e-14)
    assert bool((values.diff() < 0).all())
    assert float(entropy_lower_bound(3.0, 1)) == 0


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 6), st.integers(0, 10_000), st.floats(0.5, 20))
def test_every_kind_holds_for_every_causal_row_and_each_is_sharper_than_the_one_before(length, dim, seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, dim, generator=generator, dtype=torch.float64)
    w = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    measured = attention_entropy(softmax_attention(attention_logits(x, w), temperature, mask=causal_mask(length)))
    bounds = [causal_entropy_bounds(x, w, temperature, kind=kind) for kind in BOUND_KINDS]
    for lower, upper in zip(bounds, [*bounds[1:], measured], strict=True):
        assert bool((lower <= upper + 1e-9).all())
    assert float(bounds[0][0]) == 0  # a row that sees one token


@pytest.mark.parametrize("kind", BOUND_KINDS)
def test_every_kind_is_attained_by_orthogonal_tokens_and_a_matrix_of_rank_one(kind):
    length, scale = 6, 1.3
    x = scale * torch.eye(length, 9, dtype=torch.float64)
    unit = torch.zeros(9, dtype=torch.float64)
    unit[:length] = extremal_logits(1.0, length)
    query = torch.zeros(9, dtype=torch.float64)
    query[length - 1] = 1.0
    w = 2.0 * query[:, None] * unit[None, :]  # logits of the last query: 2 · 1.3² times the extremal direction
    measured = attention_entropy(softmax_attention(attention_logits(x, w)[-1], 1.5))
    assert float(causal_entropy_bounds(x, w, 1.5, kind=kind)[-1]) == pytest.approx(float(measured), rel=1e-9)


def test_table_of_entropy_and_bounds_holds_the_means_of_the_late_rows():
    generator = torch.Generator().manual_seed(4)
    x, w = (torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (5, 8))
    w = w[:5, :5]
    table = entropy_and_bounds(x, w, [0.01, 3.0]).set_index("temperature")
    logits = attention_logits(x, w)
    late = [float(entropy(logits[t, : t + 1] / 3.0)) for t in (4, 5, 6, 7)]
    assert table.loc[3.0, "entropy"] == pytest.approx(sum(late) / 4)
    assert table.loc[3.0, "centred"] == pytest.approx(
        float(causal_entropy_bounds(x, w, 3.0, kind="centred")[4:].mean())
    )
    assert table.loc[3.0, "log10_zhai"] == pytest.approx(math.log10(table.loc[3.0, "zhai"]))
    assert table.loc[0.01, "log10_zhai"] < -320
    assert table["violated"].sum() == 0


@pytest.mark.parametrize(("variance", "symmetric"), [(0.0, True), (0.02, True), (0.01, False)])
def test_high_temperature_deficit_matches_simulated_walks_within_four_standard_errors(variance, symmetric):
    length, dim, walks, temperature = 16, 12, 6000, 400.0
    generator = torch.Generator().manual_seed(8)
    w = random_spectrum_matrix(dim, 0.3, variance, symmetric=symmetric, generator=generator)
    x = torch.randn(walks, length, dim, generator=generator, dtype=torch.float64).cumsum(-2)
    logits = torch.einsum("nid,de,ne->ni", x, w, x[:, -1])
    deficits = math.log(length) - entropy(logits / temperature)
    error = float(deficits.std()) / walks**0.5
    predicted = float(high_temperature_deficit(matrix_moments(w), length, temperature))
    assert predicted == pytest.approx(float(deficits.mean()), abs=4 * error)
    assert error < 0.05 * predicted


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(0, 10_000))
def test_no_matrix_of_the_same_trace_has_a_smaller_deficit_than_equal_eigenvalues(dim, seed):
    w = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    equal = w.trace() / dim * torch.eye(dim, dtype=torch.float64)
    least, any_other = (high_temperature_deficit(matrix_moments(m), 20, 50.0) for m in (equal, w))
    assert float(least) <= float(any_other) * (1 + 1e-12)


def test_bounds_of_a_batch_are_those_of_its_sequences_and_the_logarithm_is_theirs():
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 4, 4, generator=generator)
    bounds = causal_entropy_bounds(x, w, kind="centred")
    assert bounds.shape == (3, 5)
    assert torch.allclose(bounds[2], causal_entropy_bounds(x[2], w[2], kind="centred"), rtol=1e-10)
    assert torch.allclose(causal_entropy_bounds(x, w, kind="centred", log=True).exp(), bounds)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: high_temperature_deficit(matrix_moments(torch.eye(2)), 1, 1.0),
            ArgumentError,
            "length must .*, got 1",
        ),
        (
            lambda: high_temperature_deficit(matrix_moments(torch.eye(2)), 4, 0.0),
            ArgumentError,
            "temperature must .*, got 0",
        ),
        (lambda: entropy_lower_bound(-1.0, 4), ArgumentError, "spectral_norm_logits must .*, got -1"),
        (lambda: entropy_lower_bound(torch.inf, 4), ArgumentError, "non-finite"),
        (lambda: entropy_lower_bound(1.0, 0), ArgumentError, "length must .*, got 0"),
        (lambda: entropy_lower_bound(1.0, torch.tensor(2.5)), ArgumentError, "length must be"),
        (lambda: entropy_lower_bound(torch.ones(2), torch.tensor([2, 3, 4])), ShapeError, "broadcast"),
        (
            lambda: causal_entropy_bounds(torch.ones(3, 2), torch.eye(2), 0.0),
            ArgumentError,
            "temperature must .*, got 0",
        ),
        (
            lambda: causal_entropy_bounds(torch.ones(3, 2), torch.eye(2), kind="tight"),
            ArgumentError,
            "kind must .*, got 'tight'",
        ),
        (lambda: causal_entropy_bounds(torch.ones(3, 2), torch.eye(3)), ShapeError, "tokens must have shape"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
