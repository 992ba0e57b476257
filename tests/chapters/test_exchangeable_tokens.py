"""Exchangeable tokens: its rules on data that support, refute or say nothing; limit and posterior in closed form."""

import pandas as pd
import pytest
import torch

from qkrepro.chapters.exchangeable_tokens import (
    CLAIMS,
    attention_estimate,
    draw_sequences,
    error_over_length,
    key_covariances,
    learnt_parameters,
    parameters,
    posterior_estimate,
    slopes,
)
from qkrepro.evidence.claims import claim_named, judge


def falls(power, jitter=0.02):
    rows = [
        {"tokens": tokens, "parameter": "right: it", "group": group, "slope": power + jitter * (-1) ** group}
        for tokens in ("a", "b")
        for group in range(6)
    ]
    return {"slopes": pd.DataFrame(rows)}


def errors(right, other, jitter=0.01):
    rows = [
        ("a", name, length, group, value + jitter * (-1) ** group * (name == "other"))
        for length, names in ((16, {"right: it": 9.0, "other": 1.0}), (64, {"right: it": right, "other": other}))
        for name, value in names.items()
        for group in range(4)
    ]
    return {"error": pd.DataFrame(rows, columns=["tokens", "parameter", "length", "group", "error"])}


def learnt(*cosines):
    return {"learnt": pd.DataFrame({"tokens": "a", "run": range(len(cosines)), "aligned": cosines})}


@pytest.mark.parametrize(
    ("name", "tables", "outcome"),
    [
        ("error-falls-with-length", falls(-0.5), "reproduced"),
        ("error-falls-with-length", falls(-0.1), "not reproduced"),
        ("error-falls-with-length", falls(-0.25, jitter=0.3), "inconclusive"),
        ("error-falls-with-length", {"slopes": falls(-0.5)["slopes"].head(0)}, "not run"),
        ("others-keep-an-error", errors(0.1, 0.9), "reproduced"),
        ("others-keep-an-error", errors(0.9, 0.1), "not reproduced"),
        ("others-keep-an-error", errors(0.5, 0.5, jitter=0.4), "inconclusive"),
        ("training-finds-the-precision", learnt(0.98, 0.97, 0.99), "reproduced"),
        ("training-finds-the-precision", learnt(0.3, 0.2, 0.25), "not reproduced"),
        ("training-finds-the-precision", learnt(0.99, 0.5, 0.9), "inconclusive"),
    ],
)
def test_data_decide_the_verdict(name, tables, outcome):
    verdict = judge(claim_named(CLAIMS, name), tables)
    assert verdict.outcome == outcome, verdict.because


def test_attention_tends_to_the_tilted_mean():
    generator = torch.Generator().manual_seed(0)
    cov = key_covariances(3, 4.0)["anisotropic"]
    queries, keys, values, latent = draw_sequences(cov, (2,), 200_000, 0.3, generator)
    for w in parameters(cov, generator).values():
        limit = (latent * (queries @ (0.5 * w) @ cov)).sum(-1)
        torch.testing.assert_close(attention_estimate(queries, keys, values, 0.5 * w), limit, atol=0.08, rtol=0)


def test_the_posterior_of_one_token_is_the_conjugate_formula():
    k, v, q, noise = 1.5, 2.0, 0.7, 0.5
    one = [torch.tensor(each, dtype=torch.float64) for each in ([[q]], [[[k]]], [[v]])]
    assert posterior_estimate(*one, noise).item() == pytest.approx(q * k * v / (k**2 + noise**2))


def test_the_error_of_the_right_parameter_falls_and_its_slope_is_fitted():
    sizes = {"groups": 2, "draws": 30, "noise": 0.3, "seed": 0}
    table = error_over_length(key_covariances(3, 4.0), [16, 256, 4096], **sizes)
    slope = slopes(table).groupby("parameter")["slope"].mean()
    assert slope["right: inverse covariance"] < -0.3 < slope["uniform attention"]


def test_a_trained_head_turns_towards_the_inverse_covariance():
    table = learnt_parameters(
        {"isotropic": torch.eye(2, dtype=torch.float64)}, runs=2, batch=32, length=32, noise=0.1, steps=150, rate=0.05
    )
    assert (table["aligned"] > 0.9).all()
