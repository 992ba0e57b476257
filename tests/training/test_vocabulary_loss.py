import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from torch import Tensor

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.models.transformer import LanguageModel, ModelConfig
from qkrepro.training.optimizer import make_optimizer
from qkrepro.training.vocabulary_loss import vocabulary_loss, vocabulary_nll

Draw = tuple[Tensor, Tensor, Tensor]


def draw(tokens: int = 40, words: int = 50, width: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype).requires_grad_()
    embedding = torch.randn(words, width, generator=generator, dtype=dtype).requires_grad_()
    return hidden, embedding, torch.randint(words, (tokens,), generator=generator)


def plain(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, embedding), targets)


def gradients(loss: Tensor, hidden: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    grad_hidden, grad_embedding = torch.autograd.grad(loss, (hidden, embedding))
    return grad_hidden, grad_embedding


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 9), st.integers(1, 50), st.integers(0, 99))
def test_value_and_gradients_equal_those_of_the_plain_loss(
    n: int, words: int, width: int, chunk: int, seed: int
) -> None:
    hidden, embedding, targets = draw(n, words, width, torch.float64, seed)
    loss, expected = vocabulary_loss(hidden, embedding, targets, chunk=chunk), plain(hidden, embedding, targets)
    torch.testing.assert_close(loss, expected)
    ours, theirs = gradients(loss, hidden, embedding), gradients(expected, hidden, embedding)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_gradients_pass_gradcheck() -> None:
    hidden, embedding, targets = draw(5, 7, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda h, e: vocabulary_loss(h, e, targets, chunk=2), (hidden, embedding))


def test_batches_of_sequences_give_the_mean_over_all_tokens() -> None:
    hidden, embedding, targets = draw(24)
    shaped = vocabulary_loss(hidden.view(2, 12, 8), embedding, targets.view(2, 12))
    torch.testing.assert_close(shaped, plain(hidden, embedding, targets))


def test_bf16_products_stay_near_the_float32_gradients() -> None:
    hidden, embedding, targets = draw(600, 3000, 64)
    embedding = (embedding.detach() / 8).requires_grad_()
    loss, expected = vocabulary_loss(hidden, embedding, targets, precision="bf16"), plain(hidden, embedding, targets)
    assert float((loss - expected).detach().abs()) < 1e-3
    for ours, theirs in zip(gradients(loss, hidden, embedding), gradients(expected, hidden, embedding), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 2e-3


def test_training_with_bf16_follows_the_float32_loss_curve() -> None:
    curves = {}
    for precision in ("float32", "bf16"):
        torch.manual_seed(3)
        model = LanguageModel(ModelConfig(400, d_model=32, d_ff=32))
        optimizer = make_optimizer(model, 3e-3)
        tokens = (torch.rand(40, 8, 33, generator=torch.Generator().manual_seed(4)) ** 3 * 400).long()
        losses = []
        for batch in tokens:
            hidden = model.hidden(batch[:, :-1])
            loss = vocabulary_loss(hidden, model.embedding.weight, batch[:, 1:], precision=precision)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        curves[precision] = torch.tensor(losses)
    assert float(curves["float32"][0] - curves["float32"][-1]) > 0.5  # nats: it does learn
    assert float((curves["bf16"] - curves["float32"]).abs().max()) < 0.01


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bf16", 1e-3)])
def test_summed_nll_equals_the_summed_plain_loss(precision: str, tolerance: float) -> None:
    hidden, embedding, targets = draw(300, 500, 16)
    expected = F.cross_entropy(F.linear(hidden, embedding), targets, reduction="sum").detach()
    nll = vocabulary_nll(hidden, embedding, targets, precision=precision, chunk=64)
    assert not nll.requires_grad
    torch.testing.assert_close(nll, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_without_gradients_the_loss_is_the_mean_nll(precision: str) -> None:
    hidden, embedding, targets = draw()
    with torch.no_grad():
        loss = vocabulary_loss(hidden, embedding, targets, precision=precision)
    torch.testing.assert_close(loss, vocabulary_nll(hidden, embedding, targets, precision=precision) / 40)


def test_logits_beyond_the_range_of_exp_give_the_plain_loss() -> None:
    hidden, embedding, targets = draw()
    hidden = (hidden.detach() * 300).requires_grad_()
    loss, expected = vocabulary_loss(hidden, embedding, targets), plain(hidden, embedding, targets)
    assert float(expected.detach()) > 200
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, hidden, embedding), gradients(expected, hidden, embedding))
    torch.testing.assert_close(vocabulary_nll(hidden, embedding, targets) / 40, expected.detach())


def test_a_weighted_loss_has_weighted_gradients() -> None:
    hidden, embedding, targets = draw()
    ours = gradients(vocabulary_loss(hidden, embedding, targets) * -3, hidden, embedding)
    theirs = gradients(plain(hidden, embedding, targets) * -3, hidden, embedding)
    torch.testing.assert_close(ours, theirs)


def test_two_backward_passes_add_up() -> None:
    hidden, embedding, targets = draw()
    loss = vocabulary_loss(hidden, embedding, targets)
    loss.backward(retain_graph=True)
    loss.backward()
    theirs = gradients(plain(hidden, embedding, targets) * 2, hidden, embedding)
    torch.testing.assert_close((hidden.grad, embedding.grad), theirs)


def test_a_tied_embedding_collects_both_gradients() -> None:
    _, embedding, targets = draw()
    ours, theirs = (
        torch.autograd.grad(loss(embedding[targets].tanh(), embedding, targets.flip(0)), embedding)
        for loss in (vocabulary_loss, plain)
    )
    torch.testing.assert_close(ours, theirs)


def test_autocast_changes_nothing() -> None:
    hidden, embedding, targets = draw()
    outside = vocabulary_loss(hidden, embedding, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = vocabulary_loss(hidden, embedding, targets)
    assert torch.equal(inside, outside)
    torch.testing.assert_close(gradients(inside, hidden, embedding), gradients(outside, hidden, embedding))


def test_hidden_tokens_in_half_precision_meet_the_embedding_in_its_own() -> None:
    hidden, embedding, targets = draw()
    half = hidden.detach().bfloat16().requires_grad_()
    exact = half.detach().float().requires_grad_()
    ours = gradients(vocabulary_loss(half, embedding, targets), half, embedding)
    theirs = gradients(plain(exact, embedding, targets), exact, embedding)
    assert ours[0].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0].float(), theirs[0], rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_no_tensor_holds_more_than_the_logits_of_one_chunk(precision: str) -> None:
    hidden, embedding, targets = draw(400, 500, 8)
    with LargestTensor() as largest:
        vocabulary_loss(hidden, embedding, targets, precision=precision, chunk=32).backward()
        vocabulary_nll(hidden, embedding, targets, precision=precision, chunk=32)
    assert largest.elements == 32 * 500


def test_second_derivatives_are_refused() -> None:
    hidden, embedding, targets = draw()
    loss = vocabulary_loss(hidden, embedding, targets)
    with pytest.raises(ArgumentError, match="create_graph"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"targets": torch.zeros(39, dtype=torch.int64)}, ShapeError),
        ({"targets": torch.zeros(40)}, ArgumentError),
        ({"targets": torch.full((40,), 50)}, ArgumentError),
        ({"targets": torch.full((40,), -1)}, ArgumentError),
        ({"embedding": torch.zeros(50, 9)}, ShapeError),
        ({"embedding": torch.zeros(50, 8, dtype=torch.bfloat16)}, ArgumentError),
        ({"hidden": torch.zeros(40, 8, dtype=torch.int64)}, ArgumentError),
        ({"hidden": torch.zeros(0, 8), "targets": torch.zeros(0, dtype=torch.int64)}, ShapeError),
        ({"precision": "fp8"}, ArgumentError),
        ({"chunk": 0}, ArgumentError),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, object], error: type[Exception]) -> None:
    arguments = dict(zip(("hidden", "embedding", "targets"), draw(), strict=True)) | change
    with pytest.raises(error, match=str(next(iter(reversed(change))))):
        vocabulary_loss(**arguments)  # type: ignore[arg-type]
