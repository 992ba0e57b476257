"""LocAteR in a whole training by the `Trainer` of `transformers`, gradients accumulated, against a loop by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from qkrepro.models.adapter import trainer_callback
from qkrepro.training.locater import LocAteR

STEPS, ROWS, ACCUMULATED, RATE = 3, 2, 2, 0.01  # of the optimiser, rows of a batch, batches of a step, learning rate


class InOrder(Trainer):
    """A Trainer that reads its rows in their order."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def model_without_dropout(name: str) -> nn.Module:
    model = make(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def rows() -> Tensor:
    """Token numbers (rows, 7)."""
    return torch.randint(3, 48, (STEPS * ACCUMULATED * ROWS, 7), generator=torch.Generator().manual_seed(4))


def targets(batch: Tensor) -> Tensor:
    """The rows as labels; nothing predicts the first token, and the Trainer must not count it among the targets."""
    labels = batch.clone()
    labels[..., 0] = -100
    return labels


def trained(name: str, folder: Path, kappa: float | None) -> nn.Module:
    """The model after a whole training by the Trainer, with the callback unless kappa is None."""
    model = model_without_dropout(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=ACCUMULATED,
        max_steps=STEPS,
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = InOrder(
        model,
        arguments,
        train_dataset=[{"input_ids": row, "labels": targets(row)} for row in rows()],
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
        callbacks=None if kappa is None else [trainer_callback(LocAteR.for_model(model, kappa=kappa))],
    )
    trainer.train()
    assert trainer.state.global_step == STEPS
    return model


def trained_by_hand(name: str, kappa: float) -> nn.Module:
    """The same model after steps on the mean loss of the accumulated rows plus the term."""
    model = model_without_dropout(name).train()
    locater = LocAteR.for_model(model, kappa=kappa)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for batch in rows().split(ACCUMULATED * ROWS):
        optimizer.zero_grad()
        (model(input_ids=batch, labels=targets(batch)).loss + locater(model)).backward()
        optimizer.step()
    return model


def off_target(model: nn.Module) -> Tensor:
    """|tr W − 1| of every head."""
    pairs = (parameters.weights() for parameters in LocAteR.for_model(model).find(model))
    return torch.stack([((w_q * w_k).sum((-2, -1)) - 1).abs() for w_q, w_k in pairs]).detach()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_whole_training_with_the_callback_is_a_loop_that_adds_the_term_to_the_mean_loss(
    name: str, tmp_path: Path
) -> None:
    ours, by_hand = trained(name, tmp_path, 0.05).state_dict(), trained_by_hand(name, 0.05).state_dict()
    start = model_without_dropout(name).state_dict()
    for key, value in by_hand.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    assert any((ours[key] - start[key]).abs().max() > 1e-3 for key in start)  # far beyond that tolerance


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_callback_of_strength_zero_changes_no_weight(name: str, tmp_path: Path) -> None:
    without, zero = trained(name, tmp_path, None).state_dict(), trained(name, tmp_path, 0.0).state_dict()
    assert all(torch.equal(zero[key], value) for key, value in without.items())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_in_a_whole_training_the_term_draws_the_traces_to_their_target(name: str, tmp_path: Path) -> None:
    before, without, with_term = (
        off_target(model) for model in (make(name), trained(name, tmp_path, None), trained(name, tmp_path, 0.2))
    )
    assert float(with_term.mean()) < 0.9 * float(before.mean())
    assert float(with_term.mean()) < 0.9 * float(without.mean())
