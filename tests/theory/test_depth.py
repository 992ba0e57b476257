import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Generator
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from qkrepro.errors import ArgumentError
from qkrepro.theory.attention import attention_logits, causal_mask, softmax_attention
from qkrepro.theory.depth import Spectrum, Stack, depth_experiment, first_attention, layer_entropy
from qkrepro.theory.spectrum import random_spectrum_matrix

CONCENTRATED, DISPERSED = Spectrum(16, 0.01), Spectrum(16, 16)
SMALL = Stack(layers=3, length=12, dim=8)

# Theory, "Both at once": (ξ, √(d σ²)) → entropy ratio of the first layer, range of the residual after eight layers
SECTION_11 = {
    Spectrum(0, 0.01): (1.00, (0.02, 0.04)),
    Spectrum(0, 16): (0.22, (0.01, 0.08)),
    Spectrum(16, 0.01): (0.70, (0.34, 0.40)),
    Spectrum(16, 16): (0.26, (0.03, 0.30)),
    Spectrum(-16, 0.01): (0.34, (0.00, 0.01)),
}


@pytest.fixture(scope="module")
def section_11() -> pd.DataFrame:
    return depth_experiment(list(SECTION_11), Stack(), seeds=range(60), measure_at=[1, 8])


def at(table: pd.DataFrame, spectrum: Spectrum, layer: int) -> pd.DataFrame:
    return table[
        (table["mean_scaled"] == spectrum.trace) & (table["dispersion"] == spectrum.spread) & (table["layer"] == layer)
    ]


@pytest.mark.parametrize("spectrum", SECTION_11)
def test_each_row_of_the_theory_table_comes_out(section_11, spectrum):
    entropy, (low, high) = SECTION_11[spectrum]
    assert at(section_11, spectrum, 1)["entropy_ratio"].mean() == pytest.approx(entropy, abs=0.04)
    residual = at(section_11, spectrum, 8)["residual"]
    slack = 2 * residual.sem()  # the table's ranges are of five seeds, ours is a mean of sixty
    assert low - slack <= residual.mean() <= high + slack


def test_input_of_the_theory_table_has_a_residual_of_0_58(section_11):
    assert section_11["input_residual"].mean() == pytest.approx(0.58, abs=0.015)


def test_temperature_of_a_standard_layer_undoes_what_the_concentrated_spectrum_keeps():
    table = depth_experiment([CONCENTRATED], Stack(temperature=8.0), seeds=range(40), measure_at=[8])
    assert table.loc[table["layer"] == 8, "residual"].mean() == pytest.approx(0.06, abs=0.015)
    assert table["mean_scaled"].unique() == pytest.approx([2.0])


def test_independent_tokens_keep_their_residual_and_lose_their_entropy():
    table = depth_experiment([CONCENTRATED], Stack(tokens="independent"), seeds=range(10), measure_at=[1, 8])
    assert table.loc[table["layer"] == 8, "residual"].mean() == pytest.approx(0.99, abs=0.01)
    assert table.loc[table["layer"] == 1, "entropy_ratio"].mean() < 0.005


@pytest.mark.slow
def test_depth_undoes_what_the_concentrated_spectrum_keeps_and_a_residual_connection_holds_more_of_it():
    rows = list(SECTION_11)
    for residual_connection, expected, error in ((False, 0.07, 0.035), (True, 0.31, 0.06)):
        stack = Stack(layers=24, residual=residual_connection)
        table = depth_experiment(rows, stack, seeds=range(60), measure_at=[24])
        ends = table[table["layer"] == 24].groupby(["mean_scaled", "dispersion"])["residual"].mean()
        assert ends[(16, 0.01)] == pytest.approx(expected, abs=error)
        assert ends.drop((16, 0.01)).max() < 0.06


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_stack_equals_the_same_layers_in_pytorch(causal, residual, norm):
    options = {"residual": residual, "causal": causal, "layer_norm": norm, "temperature": 1.7, "tokens": "AR(1)"}
    stack = Stack(layers=2, length=10, dim=6, **options)
    table = depth_experiment([Spectrum(3, 2)], stack, seeds=[5])
    generator = Generator().manual_seed(5)
    x = stack.draw_input(generator)
    for _ in range(2):
        w = random_spectrum_matrix(6, 0.5, 4 / 6, generator=generator)
        w_v = torch.randn(6, 6, generator=generator, dtype=torch.float64) / 6**0.5
        query, key, value = (y[None, None] for y in (x @ w, x, x @ w_v))
        out = scaled_dot_product_attention(query, key, value, is_causal=causal, scale=1 / 1.7)[0, 0]
        x = x + out if residual else out
        x = layer_norm(x, (6,)) if norm else x
    expected = (x - x.mean(0)).norm() / x.norm()
    assert table["residual"].iloc[-1] == pytest.approx(float(expected), rel=1e-6)


def test_uniform_attention_over_all_tokens_leaves_one_token_after_one_layer():
    table = depth_experiment([Spectrum(0, 0)], Stack(layers=1, length=9, dim=5, causal=False), seeds=range(3))
    last = table[table["layer"] == 1]
    assert last["residual"].max() < 1e-12
    assert last["entropy_ratio"].to_numpy() == pytest.approx(1)
    assert last["cosine_similarity"].to_numpy() == pytest.approx(1)
    assert last["stable_rank"].to_numpy() == pytest.approx(1)


def test_attention_to_oneself_with_identity_values_changes_no_token():
    stack = Stack(layers=4, length=9, dim=64, tokens="independent", values="identity")
    table = depth_experiment([Spectrum(4000, 0)], stack, seeds=range(3))
    assert table["residual_ratio"].to_numpy() == pytest.approx(1, abs=1e-4)
    assert table["entropy"].max() < 1e-9


def test_a_seed_does_not_depend_on_the_other_seeds_or_spectra():
    both = depth_experiment([CONCENTRATED, DISPERSED], SMALL, seeds=[0, 7])
    alone = depth_experiment([DISPERSED], SMALL, seeds=[7])
    same = both[(both["seed"] == 7) & (both["dispersion"] == 16)].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, alone, rtol=1e-9)


def test_the_same_seed_gives_the_same_bytes():
    first, second = (depth_experiment([DISPERSED], SMALL, seeds=[3]) for _ in range(2))
    assert first.to_csv() == second.to_csv()


def test_measuring_some_layers_gives_what_measuring_all_gives_there():
    every = depth_experiment([DISPERSED], SMALL, seeds=[1])
    some = depth_experiment([DISPERSED], SMALL, seeds=[1], measure_at=[1, 3])
    assert list(every["layer"]) == [0, 1, 2, 3]
    pd.testing.assert_frame_equal(some, every[every["layer"] != 2].reset_index(drop=True))


def test_first_attention_is_that_of_the_experiment():
    attention = first_attention([CONCENTRATED, DISPERSED], SMALL, seed=4)
    table = depth_experiment([CONCENTRATED, DISPERSED], SMALL, seeds=[4], measure_at=[1])
    assert layer_entropy(attention).numpy() == pytest.approx(table.loc[table["layer"] == 1, "entropy"].to_numpy())


def test_identity_values_draw_every_token_to_the_first_at_least_as_fast_as_the_smallest_weight_on_it():
    stack = Stack(layers=30, length=10, dim=4, values="identity", layer_norm=False)
    x = stack.draw_input(Generator().manual_seed(2))
    start, bound = (x - x[0]).norm(dim=-1).max(), 1.0
    for layer in range(30):
        w = random_spectrum_matrix(4, 1.0, 2.0, generator=Generator().manual_seed(layer))
        attention = softmax_attention(attention_logits(x, w), mask=causal_mask(10))
        x = attention @ x
        bound *= 1 - float(attention[:, 0].min())
        assert float((x - x[0]).norm(dim=-1).max()) <= float(start) * bound + 1e-12
    assert bound < 0.5


def test_tokens_follow_the_law_asked_for():
    stacks = {law: Stack(tokens=law, length=40, normalise_input=False) for law in ("random walk", "independent")}
    growth = {}
    for law, stack in stacks.items():
        x = torch.stack([stack.draw_input(Generator().manual_seed(seed)) for seed in range(50)])
        growth[law] = float(x[:, -1].square().mean() / x[:, 0].square().mean())
    assert growth["random walk"] == pytest.approx(40, rel=0.15)
    assert growth["independent"] == pytest.approx(1, rel=0.15)


def test_input_goes_through_layer_norm_unless_raw_tokens_are_asked_for():
    normalised = Stack().draw_input(Generator().manual_seed(0))
    assert normalised.mean(-1).numpy() == pytest.approx(0, abs=1e-12)
    assert normalised.norm(dim=-1).numpy() == pytest.approx(8, rel=1e-3)


def test_layer_entropy_is_the_mean_over_the_last_half_of_causal_queries():
    attention = torch.ones(4, 4, dtype=torch.float64).tril()
    attention = attention / attention.sum(-1, keepdim=True)
    assert float(layer_entropy(attention)) == pytest.approx((math.log(3) + math.log(4)) / 2)
    assert float(layer_entropy(attention, causal=False)) == pytest.approx(np.log([1, 2, 3, 4]).mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Stack(layers=0), "layers must .*, got 0"),
        (lambda: Stack(length=1), "length must .*, got 1"),
        (lambda: Stack(tokens="brownian"), "tokens must be one of random walk, independent"),
        (lambda: Stack(values="zero"), "values must .*, got 'zero'"),
        (lambda: Stack(temperature=-1.0), "temperature must .*, got -1.0"),
        (lambda: depth_experiment([], SMALL, seeds=[0]), "spectra and seeds must not be empty, got 0 and 1"),
        (lambda: depth_experiment([DISPERSED], SMALL, seeds=[]), "spectra and seeds must not be empty, got 1 and 0"),
        (lambda: depth_experiment([DISPERSED], SMALL, seeds=[0], measure_at=[4]), r"measure_at must be .*, got \[4\]"),
        (lambda: depth_experiment([DISPERSED], SMALL, seeds=[0], measures=["rank"]), "measures must .*, got 'rank'"),
        (lambda: depth_experiment([Spectrum(1, -1)], SMALL, seeds=[0]), "spread must .*, got -1"),
        (
            lambda: depth_experiment([DISPERSED], Stack(tokens="AR(1)", coefficient=1.0), seeds=[0]),
            "coefficient must .*, got 1",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
