"""LocAteR on models of `transformers`: the same term as from the weights read from their files, also when wrapped."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from tiny_models import MAKERS, inputs, make, save
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers.trainer_callback import CallbackHandler, TrainerControl, TrainerState

from qkrepro.errors import ArgumentError
from qkrepro.models.adapter import trainer_callback
from qkrepro.models.checkpoint import qk_weights
from qkrepro.training.locater import LocAteR

SHAPES = ["bert", "gpt2", "llama"]


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"clip"}))
def test_the_term_of_a_model_is_that_of_the_weights_in_its_file(name: str, tmp_path: Path) -> None:
    model = make(name)
    locater = LocAteR.for_model(model, kappa=0.5)
    expected = sum(
        float((w_q.mT @ w_k).square().sum() + ((w_q * w_k).sum() - 1) ** 2)
        for _, _, w_q, w_k in qk_weights(save(model, tmp_path))
    )
    assert float(locater(model).detach()) == pytest.approx(0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_reach_the_query_and_key_weights_alone(name: str) -> None:
    model = make(name)
    LocAteR.for_model(model)(model).backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(touched) == (3 if name == "gpt2" else 6)
    assert all(any(word in name for word in ("query", "key", "q_proj", "k_proj", "c_attn")) for name in touched)
    if name == "gpt2":
        packed = model.transformer.h[0].attn.c_attn.weight.grad
        assert packed[:, :48].abs().min() > 0
        assert packed[:, 48:].abs().max() == 0  # the values


class Wrapper(nn.Module):
    """Holds a model as torch.compile (`_orig_mod`) or DistributedDataParallel (`module`) does."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, model)


def test_wrapped_models_are_looked_through() -> None:
    model = make("bert")
    locater = LocAteR.for_model(Wrapper(Wrapper(model, "module"), "_orig_mod"))
    assert float(locater(Wrapper(model, "module")).detach()) == float(locater(model).detach())


@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt-neox"])
def test_the_projection_holds_every_trace(name: str) -> None:
    model = make(name)
    locater = LocAteR.for_model(model, kappa=0.1, mean="projection", target_trace=2.0)
    locater.start(model)
    for parameter in model.parameters():
        parameter.grad = None
    locater(model).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
    layers = locater.find(model)
    assert layers
    for parameters in layers:
        w_q, w_k = parameters.weights()
        torch.testing.assert_close((w_q * w_k).sum((-2, -1)), torch.full((4,), 2.0), rtol=1e-3, atol=1e-3)


def test_the_projection_is_refused_for_grouped_queries_and_unknown_models_are_named() -> None:
    with pytest.raises(ArgumentError, match="grouped queries"):
        LocAteR.for_model(make("llama"), mean="projection")
    with pytest.raises(ArgumentError, match=r"model_type must be one of bert, .*got None"):
        LocAteR.for_model(nn.Linear(2, 2))


def test_the_callback_adds_the_gradient_of_the_term_before_the_step() -> None:
    model = make("gpt2")
    locater = LocAteR.for_model(model, kappa=0.3)
    handler = CallbackHandler([trainer_callback(locater)], model, None, None, None)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    handler.on_pre_optimizer_step(None, TrainerState(), TrainerControl())
    weight = model.transformer.h[1].attn.c_attn.weight
    expected = torch.autograd.grad(locater(model), weight)[0]
    torch.testing.assert_close(weight.grad, 1 + expected)


def _loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    out = model(input_ids=rows)
    return out[0].square().mean()


def _train(rank: int, folder: str) -> None:
    """Two steps of each model in one of two processes, half the batch each; rank 0 saves the weights."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in SHAPES:
        model = make(name)
        locater = LocAteR.for_model(model, kappa=0.2)
        _steps(DistributedDataParallel(model, find_unused_parameters=True), locater, _batch()[2 * rank : 2 * rank + 2])
        if rank == 0:
            torch.save(model.state_dict(), f"{folder}/{name}.pt")
    torch.distributed.destroy_process_group()


def _batch() -> torch.Tensor:
    return torch.randint(3, 48, (4, 7), generator=torch.Generator().manual_seed(4))


def _steps(model: nn.Module, locater: LocAteR, rows: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (_loss(model, rows) + locater(model)).backward()
        optimizer.step()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    mp.spawn(_train, args=(str(tmp_path),), nprocs=2)
    for name in SHAPES:
        alone = make(name)
        _steps(alone, LocAteR.for_model(alone, kappa=0.2), _batch())
        together: dict[str, Any] = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-6)


def test_ten_lines_train_a_model_with_the_term() -> None:
    model = make("gpt2")
    locater = LocAteR.for_model(model, kappa=1e-3)
    before = float(locater(model).detach())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        batch = inputs(model)
        loss = model(**batch, labels=batch["input_ids"]).loss + locater(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(locater(model).detach()) < before
