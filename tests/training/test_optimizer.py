import math

import pytest
import torch
from torch import nn

from qkrepro.errors import ArgumentError
from qkrepro.training.optimizer import learning_rate, make_optimizer, set_learning_rate


def test_rate_rises_linearly_to_the_peak_and_falls_as_inverse_root() -> None:
    rates = {update: learning_rate(update, peak=0.002, warmup=100) for update in (1, 50, 100, 400, 10_000)}
    assert rates == pytest.approx({1: 0.00002, 50: 0.001, 100: 0.002, 400: 0.001, 10_000: 0.0002})


def test_linear_rate_rises_to_the_peak_and_would_be_zero_after_the_last_update() -> None:
    rates = [learning_rate(n, peak=0.3, warmup=3, schedule="linear", last=9) for n in range(1, 10)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3 * 6 / 7, 0.3 * 5 / 7, 0.3 * 4 / 7, 0.3 * 3 / 7, 0.6 / 7, 0.3 / 7])
    assert learning_rate(3, peak=0.3, warmup=3, schedule="linear", last=3) == 0.3


@pytest.mark.parametrize(
    "bad", [{"last": None}, {"last": 4}, {"last": 20, "warmup": 21}, {"schedule": "cosine", "last": 20}]
)
def test_linear_rate_needs_an_end_after_the_warmup(bad: dict[str, object]) -> None:
    given = {"peak": 1.0, "warmup": 2, "schedule": "linear"} | bad
    with pytest.raises(ArgumentError, match="must"):
        learning_rate(5, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("update", "warmup"), [(0, 10), (5, 0)])
def test_updates_and_warmup_count_from_one(update: int, warmup: int) -> None:
    with pytest.raises(ArgumentError):
        learning_rate(update, peak=1.0, warmup=warmup)


def test_two_updates_follow_adam_with_decoupled_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = make_optimizer(model, 1.0)
    set_learning_rate(optimizer, 0.1)
    weight = float(model.weight.detach())
    first = second = 0.0
    for update, gradient in enumerate((0.5, -2.0), start=1):
        model.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        step = first / (1 - 0.9**update) / (math.sqrt(second / (1 - 0.98**update)) + 1e-8)
        weight = weight * (1 - 0.1 * 0.01) - 0.1 * step
    assert float(model.weight.detach()) == pytest.approx(weight, rel=1e-5)
