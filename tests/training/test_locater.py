import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from torch import Tensor, nn

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.models.transformer import LanguageModel, ModelConfig
from qkrepro.theory.spectrum import random_rotation
from qkrepro.training.locater import MEANS, SCALES, LocAteR, find_qk_parameters, project_gradients, recentre_trace


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(d_head: int = 4, d_model: int = 6, seed: int = 0, heads: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    w_q, w_k = torch.randn(2, *heads, d_head, d_model, generator=generator(seed), dtype=torch.float64).unbind()
    return w_q.clone().requires_grad_(), w_k.clone().requires_grad_()


def full_form(w_q: Tensor, w_k: Tensor, scale: str, mean: str, target: float) -> Tensor:
    """The regulariser of one head from the full d_model × d_model matrix, as the book writes it, "Theory: LocAteR"."""
    w = w_q.T @ w_k
    trace = w.trace()
    if scale in ("variance", "deviation"):
        return torch.linalg.matrix_norm(w) ** 2 - trace**2 / (len(w_q) if scale == "variance" else len(w))
    symmetric = (w + w.T) / 2
    size = torch.linalg.matrix_norm(w) ** 2 if scale == "frobenius" else (symmetric @ symmetric).trace()
    return size + (trace - target) ** 2 if mean == "penalty" else size


def small_model(**changes: object) -> LanguageModel:
    sizes = {"vocabulary": 20, "d_model": 16, "d_ff": 16, "layers": 2, "heads": 4, "dropout": 0.0} | changes
    return LanguageModel(ModelConfig(**sizes), generator(1))  # type: ignore[arg-type]


def attention(packed: bool = True, width: int = 8) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(width, 2, batch_first=True, vdim=None if packed else 5)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(SCALES), st.sampled_from(MEANS[:2]), st.integers(1, 5), st.integers(0, 4), st.floats(-2, 2))
def test_value_and_gradients_equal_the_full_form(scale: str, mean: str, d_head: int, more: int, target: float) -> None:
    w_q, w_k = draw(d_head, d_head + more)
    ours = LocAteR(0.3, target, scale, mean)((w_q, w_k))
    theirs = 0.3 * full_form(w_q, w_k, scale, mean, target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, (w_q, w_k)), torch.autograd.grad(theirs, (w_q, w_k)))


@pytest.mark.parametrize("scale", SCALES)
def test_heads_add_up(scale: str) -> None:
    w_q, w_k = draw(3, 6, heads=(2, 5))
    each = [full_form(q, k, scale, "penalty", 1.0) for q, k in zip(w_q.flatten(0, 1), w_k.flatten(0, 1), strict=True)]
    torch.testing.assert_close(LocAteR(2.0, scale=scale)((w_q, w_k)), 2 * torch.stack(each).sum())


def gradient_of(value: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, weights)])


@pytest.mark.parametrize(("d_head", "d_model"), [(4, 4), (2, 5)])
def test_a_target_that_follows_the_trace_has_the_gradient_of_the_deviation_with_and_without_its_own(d_head, d_model):
    weights = draw(d_head, d_model)
    w = weights[0].mT @ weights[1]
    target = w.trace().detach() / d_model * torch.eye(d_model, dtype=torch.float64)
    stopped = (w - target).square().sum()
    ours = LocAteR(1.0, scale="deviation")(weights)
    torch.testing.assert_close(ours, stopped)
    torch.testing.assert_close(gradient_of(ours, weights), gradient_of(stopped, weights))


def test_stopping_the_gradient_of_the_squared_trace_alone_is_nothing_but_shrinkage() -> None:
    weights = draw()
    w = weights[0].mT @ weights[1]
    shrinkage = gradient_of((weights[0].mT @ weights[1]).square().sum(), weights)
    torch.testing.assert_close(gradient_of(w.square().sum() - w.trace().detach() ** 2 / 6, weights), shrinkage)


def test_the_deviation_is_orthogonal_to_the_identity_and_zero_for_its_multiples() -> None:
    w = torch.randn(5, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    eye = torch.eye(5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(LocAteR(1.0, scale="deviation")((eye, w)), w)
    assert float(gradient.trace()) == pytest.approx(0, abs=1e-12)
    assert float(LocAteR(1.0, scale="deviation")((2 * eye, 3 * eye))) == pytest.approx(0, abs=1e-9)


def test_with_one_head_both_forms_of_the_deviation_are_one() -> None:
    weights = draw(5, 5)
    assert torch.equal(LocAteR(1.0, scale="deviation")(weights), LocAteR(1.0, scale="variance")(weights))


@pytest.mark.parametrize("scale", ["frobenius", "deviation", "variance"])
@pytest.mark.parametrize("tokens", [False, True])
def test_kept_trace_leaves_the_least_squares_rest_of_the_penaltys_gradient(scale: str, tokens: bool) -> None:
    weights = draw(3, 5)
    root = torch.randn(5, 5, generator=generator(3), dtype=torch.float64) if tokens else torch.eye(5).double()
    w = weights[0].mT @ weights[1]
    m = root.T @ w @ root
    along, of_w = (gradient_of(matrix.trace(), weights) for matrix in (m, weights[0].mT @ weights[1]))
    plain = gradient_of((root.T @ weights[0].mT @ weights[1] @ root).square().sum(), weights)
    rest = plain - along * torch.linalg.lstsq(along[:, None], plain).solution
    covariance = root @ root.T if tokens else None
    ours = gradient_of(LocAteR(1.0, scale=scale, mean="keep").per_head(*weights, covariance), weights)
    torch.testing.assert_close(ours, rest)
    assert float(ours @ along) == pytest.approx(0, abs=1e-9 * float(plain.norm() * along.norm()))
    assert tokens == (abs(float(ours @ of_w)) > 1e-6)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["frobenius", "variance", "deviation"]), st.integers(1, 5), st.integers(0, 4), st.floats(-2, 2))
def test_with_tokens_value_and_gradients_are_those_of_the_whitened_matrix(
    scale: str, d_head: int, more: int, target: float
) -> None:
    w_q, w_k = draw(d_head, d_head + more)
    root = torch.randn(d_head + more, d_head + more, generator=generator(2), dtype=torch.float64)  # M = rootᵀ W root
    ours = LocAteR(1.0, target, scale).per_head(w_q, w_k, root @ root.T)
    theirs = full_form(w_q @ root, w_k @ root, scale, "penalty", target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, (w_q, w_k)), torch.autograd.grad(theirs, (w_q, w_k)))


def test_with_tokens_no_product_of_the_models_width_is_formed_beside_the_covariance() -> None:
    w_q, w_k = draw(2, 40)
    covariance = torch.eye(40, dtype=torch.float64)
    with LargestTensor(covariance) as largest:
        LocAteR(1.0).per_head(w_q, w_k, covariance).backward()
    assert largest.elements == 2 * 40


def test_flat_spectrum_with_shrunken_trace_is_the_minimum() -> None:
    rotation = random_rotation(6, generator=generator())
    size = (1 / (4 + 1)) ** 0.5  # W = τ/(r + 1) P, r = 4
    w = (size * rotation[:4]).requires_grad_()
    value = LocAteR(1.0)((w, w.detach()))
    assert float(value.detach()) == pytest.approx(1 / 5)
    (gradient,) = torch.autograd.grad(value, w)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", SCALES)
def test_no_product_of_the_models_width_is_formed(scale: str) -> None:
    w_q, w_k = draw(2, 40)
    with LargestTensor() as largest:
        LocAteR(1.0, scale=scale)((w_q, w_k)).backward()
    assert largest.elements == 2 * 40


@pytest.mark.parametrize("packed", [True, False])
def test_weights_of_pytorch_attention_are_found_anywhere_in_a_tree(packed: bool) -> None:
    layer = attention(packed)
    tree = nn.ModuleDict({"deep": nn.Sequential(nn.Linear(2, 2), nn.ModuleList([layer, small_model()]))})
    weight = layer.in_proj_weight if packed else torch.cat([layer.q_proj_weight, layer.k_proj_weight])
    w_q, w_k = weight[:8].view(2, 4, 8), weight[8:16].view(2, 4, 8)
    expected = LocAteR(0.1)((w_q, w_k)) + LocAteR(0.1)(small_model())
    torch.testing.assert_close(LocAteR(0.1)(tree), expected)


def test_value_of_our_model_is_the_sum_over_its_heads() -> None:
    model = small_model()
    heads = [full_form(each.w_q, each.w_k, "frobenius", "penalty", 0.5) for each in model.qk_weights()]
    assert len(heads) == 8
    torch.testing.assert_close(LocAteR(0.1, 0.5)(model), 0.1 * torch.stack(heads).sum())


def test_the_gradient_reaches_the_query_and_key_rows_of_a_packed_weight_alone() -> None:
    layer = attention()
    LocAteR(1.0)(layer).backward()
    gradient = layer.in_proj_weight.grad
    assert gradient is not None
    assert gradient[:16].abs().min() > 0
    assert not gradient[16:].any()


def test_autocast_changes_nothing() -> None:
    model, locater = small_model(), LocAteR(0.1, scale="trace-square")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = locater(model)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, locater(model))


def test_half_precision_weights_are_summed_in_float32() -> None:
    w_q, w_k = (w.detach().bfloat16() for w in draw())
    assert torch.equal(LocAteR(1.0)((w_q, w_k)), LocAteR(1.0)((w_q.float(), w_k.float())))


@pytest.mark.slow
def test_compiled_without_a_break_it_gives_the_same_value_and_gradients() -> None:
    model, locater = small_model(), LocAteR(0.1, scale="trace-square")
    parameters = [p for each in find_qk_parameters(model) for p in (each.query, each.key)]
    compiled = torch.compile(lambda: locater(model), backend="aot_eager", fullgraph=True)()
    torch.testing.assert_close(compiled, locater(model))
    torch.testing.assert_close(
        torch.autograd.grad(compiled, parameters), torch.autograd.grad(locater(model), parameters)
    )


def task_loss(model: nn.Module, seed: int) -> Tensor:
    """Some loss of a model that its attention weights move."""
    if isinstance(model, nn.MultiheadAttention):
        x = torch.randn(2, 6, 8, generator=generator(seed))
        value = x if model.vdim == 8 else torch.randn(2, 6, model.vdim, generator=generator(seed + 1))
        return model(x, x, value)[0].square().mean()
    tokens = torch.randint(20, (2, 7), generator=generator(seed))
    return torch.as_tensor(model(tokens).square().mean())


def traces(model: nn.Module) -> Tensor:
    """The trace of every head of a model, (heads of all layers,)."""
    pairs = [each.weights() for each in find_qk_parameters(model)]
    return torch.cat([(w_q * w_k).sum((1, 2)) for w_q, w_k in pairs]).detach()


MODELS = {
    "ours": small_model,
    "packed": attention,
    "separate": lambda: attention(packed=False),
}


@pytest.mark.parametrize("kind", MODELS)
def test_projection_starts_every_trace_at_its_target_and_keeps_it_to_first_order(kind: str) -> None:
    model, locater = MODELS[kind](), LocAteR(0.05, 0.7, mean="projection")
    locater.start(model)
    torch.testing.assert_close(traces(model), torch.full_like(traces(model), 0.7))
    for seed in (1, 2):  # two micro-batches of one update
        (task_loss(model, seed) + locater(model)).backward()
    pairs = [each.split(each.query.grad, each.key.grad) for each in find_qk_parameters(model)]  # type: ignore[arg-type]
    second_order = torch.cat([(g_q * g_k).sum((1, 2)) for g_q, g_k in pairs])
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(traces(model) - 0.7, 0.01 * second_order, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_without_projection_the_trace_moves_to_first_order(kind: str) -> None:
    model = MODELS[kind]()
    before = traces(model)
    (task_loss(model, 1) + LocAteR(0.05, 0.7)(model)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert float((traces(model) - before).abs().min()) > 1e-4


def test_projected_gradient_is_the_least_squares_rest() -> None:
    w_q, w_k = (w.detach() for w in draw())
    g_q, g_k = (w.detach() for w in draw(seed=5))
    direction = torch.cat([w_k.flatten(), w_q.flatten()])
    gradient = torch.cat([g_q.flatten(), g_k.flatten()])
    fit = torch.linalg.lstsq(direction[:, None], gradient[:, None]).solution
    project_gradients(w_q, w_k, g_q, g_k)
    torch.testing.assert_close(torch.cat([g_q.flatten(), g_k.flatten()]), gradient - direction * fit[0])


def test_projection_leaves_all_other_gradients_alone() -> None:
    free, held = small_model(), small_model()
    LocAteR(0.0, mean="projection").start(held, recentre=False)
    for model in (free, held):
        task_loss(model, 1).backward()
    projected = {id(p) for each in find_qk_parameters(held) for p in (each.query, each.key)}
    for a, b in zip(free.parameters(), held.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) != (id(b) in projected)  # type: ignore[arg-type]


def test_projection_ends_with_its_handles() -> None:
    free, held = small_model(), small_model()
    for handle in LocAteR(0.0, mean="projection").start(held, recentre=False):
        handle.remove()
    for model in (free, held):
        task_loss(model, 1).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(free.parameters(), held.parameters(), strict=True))  # type: ignore[arg-type]


def test_penalty_starts_with_nothing_to_do() -> None:
    model = small_model()
    before = traces(model)
    assert LocAteR(0.1).start(model) == []
    assert torch.equal(traces(model), before)


def test_zero_query_weights_cannot_be_recentred() -> None:
    with pytest.raises(ArgumentError, match="w_q must not be zero"):
        recentre_trace(torch.zeros(2, 3, 4), torch.ones(2, 3, 4), 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("kappa", -1.0), ("kappa", float("nan")), ("target_trace", float("inf"))],
        *[("scale", "nuclear"), ("mean", "none"), ("target_trace", "current")],
    ],
)
def test_settings_that_are_not_allowed_are_refused(name: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=name):
        LocAteR(**({"kappa": 0.1} | {name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"scale": "trace-square", "mean": "keep"},
        {"scale": "trace-square", "tokens": list},
        {"mean": "projection", "tokens": list},
    ],
)
def test_forms_that_do_not_go_together_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="must"):
        LocAteR(0.1, **options)  # type: ignore[arg-type]


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(ArgumentError, match="Linear without attention"):
        LocAteR(0.1)(nn.Linear(3, 3))


@pytest.mark.parametrize("shapes", [((3, 4), (4, 3)), ((4,), (4,)), ((5, 4), (5, 4))])
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ShapeError, match="d_head"):
        LocAteR(0.1)((torch.ones(shapes[0]), torch.ones(shapes[1])))


def test_keys_of_another_width_are_refused() -> None:
    with pytest.raises(ShapeError, match="d_head"):
        LocAteR(0.1)(nn.MultiheadAttention(8, 2, kdim=6))
