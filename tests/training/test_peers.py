"""The peers: each against its formula, on this package's models and on PyTorch's layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkrepro.errors import ArgumentError
from qkrepro.models.transformer import LanguageModel, ModelConfig
from qkrepro.training.locater import LocAteR, find_qk_parameters
from qkrepro.training.measurements import measure
from qkrepro.training.peers import (
    QKClip,
    after_update,
    decay_queries_and_keys,
    normalise_queries_and_keys,
    reparametrise_spectrally,
    retrofit,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ours(heads: int = 2) -> LanguageModel:
    model = LanguageModel(ModelConfig(20, d_model=16, d_ff=16, heads=heads, dropout=0.0), generator(1))
    with torch.no_grad():
        for each in model.qk_weights():
            each.b_q.normal_(generator=generator(2))
            each.b_k.normal_(generator=generator(3))
    return model


def theirs(**options) -> nn.TransformerEncoderLayer:
    torch.manual_seed(4)
    settings = {"d_model": 16, "nhead": 2, "dim_feedforward": 16, "dropout": 0.0, "batch_first": True}
    layer = nn.TransformerEncoderLayer(**(settings | options))
    with torch.no_grad():
        layer.self_attn.in_proj_bias.normal_(generator=generator(5))
    return layer


TOKENS = torch.randint(20, (3, 12), generator=generator(6))
X = torch.randn(3, 12, 16, generator=generator(7))
FUTURE = torch.ones(12, 12, dtype=torch.bool).triu(1)


def attention_by_hand(layer: nn.TransformerEncoderLayer, x: Tensor, logits_of) -> Tensor:
    """What the attention of PyTorch's layer gives, head by head, with other logits: (batch, length, d_model)."""
    projected = F.linear(x, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias)
    q, k, v = (part.chunk(2, dim=-1) for part in projected.chunk(3, dim=-1))
    mixed = [
        torch.softmax(logits_of(a, b).masked_fill(FUTURE, -torch.inf), -1) @ c for a, b, c in zip(q, k, v, strict=True)
    ]
    return layer.self_attn.out_proj(torch.cat(mixed, -1))


def normalised_logits(q: Tensor, k: Tensor, gain: float) -> Tensor:
    cosine = torch.einsum("bqd,bkd->bqk", q, k) / q.norm(dim=-1)[:, :, None] / k.norm(dim=-1)[:, None]
    return gain * cosine


def test_normalised_logits_of_our_model_are_gain_times_cosine():
    model = ours()
    x = model.trace(TOKENS)[0].inputs
    normalise_queries_and_keys(model, length=12)
    logits = model.trace(TOKENS)[0].logits
    for each in model.qk_weights():
        q, k = x @ each.w_q.mT + each.b_q, x @ each.w_k.mT + each.b_k
        torch.testing.assert_close(logits[:, each.head], normalised_logits(q, k, math.log2(12**2 - 12)))


def test_normalised_model_of_ours_attends_as_its_trace_says():
    model = ours()
    normalise_queries_and_keys(model, length=12)
    trace = model.trace(TOKENS)[0]
    attention = model.layers[0].attention
    v = attention.value(trace.inputs).view(3, 12, 2, 8).transpose(1, 2)
    mixed = attention.out((trace.attention @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(trace.inputs), mixed)


@pytest.mark.parametrize("batch_first", [True, False])
def test_normalised_pytorch_layer_equals_the_formula(batch_first):
    layer = theirs(batch_first=batch_first)
    normalise_queries_and_keys(layer, length=12)
    x = X if batch_first else X.transpose(0, 1)
    found, weights = layer.self_attn(x, x, x, attn_mask=FUTURE)
    expected = attention_by_hand(layer, X, lambda q, k: normalised_logits(q, k, math.log2(132)))
    torch.testing.assert_close(found if batch_first else found.transpose(0, 1), expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 12))


def test_normalised_pytorch_layer_takes_every_form_of_mask():
    layer = theirs()
    normalise_queries_and_keys(layer, length=12)
    additive = torch.zeros(12, 12).masked_fill(FUTURE, -torch.inf)
    padding = torch.zeros(3, 12, dtype=torch.bool)
    padding[:, 9:] = True
    plain = layer(X, src_mask=FUTURE)
    torch.testing.assert_close(layer(X, src_mask=additive), plain)
    torch.testing.assert_close(
        layer.self_attn(X, X, X, attn_mask=FUTURE.expand(6, -1, -1))[0], layer.self_attn(X, X, X, attn_mask=FUTURE)[0]
    )
    torch.testing.assert_close(layer(X, src_mask=FUTURE, src_key_padding_mask=padding)[:, :9], plain[:, :9])
    torch.testing.assert_close(layer(X[0], src_mask=FUTURE), plain[0])


@pytest.mark.parametrize("peer", ["qk-norm", "sigma-reparam"])
def test_inference_of_a_pytorch_layer_gives_what_its_training_mode_gives(peer):
    layer = theirs()
    retrofit(layer, peer, 12)
    trained = layer(X, src_mask=FUTURE)
    layer.eval()
    with torch.inference_mode():
        torch.testing.assert_close(layer(X, src_mask=FUTURE), trained.detach())


@pytest.mark.parametrize("build", [ours, theirs])
def test_gain_is_trained(build):
    model = build()
    normalise_queries_and_keys(model, length=12)
    model(TOKENS if build is ours else X).square().mean().backward()
    gains = [p for name, p in model.named_parameters() if name.endswith("qk_gain")]
    assert len(gains) == 1
    assert float(gains[0].grad.abs()) > 0


@pytest.mark.parametrize("build", [ours, theirs])
def test_reparametrised_model_is_at_first_what_it_was(build):
    model, inputs = build(), TOKENS if build is ours else X
    before = model(inputs)
    reparametrise_spectrally(model)
    torch.testing.assert_close(model(inputs), before)


def test_spectral_gain_gives_every_linear_map_of_our_model_norm_gamma():
    model = ours()
    before = {name: module.weight.clone() for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    reparametrise_spectrally(model)
    with torch.no_grad():
        for number, name in enumerate(before):
            model.get_submodule(name).parametrizations.weight[0].gain.fill_(number + 0.5)
    assert len(before) == 6
    for gamma, (name, weight) in enumerate(before.items()):
        torch.testing.assert_close(
            model.get_submodule(name).weight, (gamma + 0.5) * weight / torch.linalg.matrix_norm(weight, 2)
        )


def test_spectral_gain_divides_query_key_and_value_of_a_packed_weight_each_by_its_own_norm():
    layer = theirs()
    before = layer.self_attn.in_proj_weight.detach().chunk(3)
    reparametrise_spectrally(layer)
    with torch.no_grad():
        layer.self_attn.parametrizations.in_proj_weight[0].gain.fill_(1.0)
    for old, new in zip(before, layer.self_attn.in_proj_weight.chunk(3), strict=True):
        torch.testing.assert_close(new, old / torch.linalg.matrix_norm(old, 2))


def test_gradient_runs_through_the_norm_with_its_singular_vectors_held():
    linear = nn.Linear(5, 4, bias=False).double()
    weight = linear.weight.detach().clone().requires_grad_()
    (weight / torch.linalg.matrix_norm(weight, 2)).sin().sum().backward()
    reparametrise_spectrally(linear)
    with torch.no_grad():
        linear.parametrizations.weight[0].gain.fill_(1.0)
    linear.weight.sin().sum().backward()
    torch.testing.assert_close(linear.parametrizations.weight.original.grad, weight.grad)


def test_power_iteration_follows_a_changing_weight_in_training_alone():
    linear = nn.Linear(6, 6, bias=False)
    reparametrise_spectrally(linear)
    original = linear.parametrizations.weight.original
    with torch.no_grad():
        linear.parametrizations.weight[0].gain.fill_(1.0)
        original.copy_(torch.diag(torch.tensor([5.0, 2, 1, 1, 1, 1])) + 0.1 * original)
        for _ in range(5):
            _ = linear.weight
    assert float(torch.linalg.matrix_norm(linear.weight.detach(), 2)) != pytest.approx(1, abs=1e-3)
    for _ in range(30):
        _ = linear.weight
    assert float(torch.linalg.matrix_norm(linear.eval().weight.detach(), 2)) == pytest.approx(1, abs=1e-5)


def test_reparametrising_draws_no_random_numbers():
    model = ours()
    state = torch.get_rng_state()
    reparametrise_spectrally(model)
    assert torch.equal(torch.get_rng_state(), state)


def largest_logits_by_hand(x: Tensor, w_q: Tensor, w_k: Tensor, b_q: Tensor, b_k: Tensor) -> Tensor:
    q, k = torch.einsum("btd,hed->bhte", x, w_q), torch.einsum("btd,hed->bhte", x, w_k)
    logits = torch.einsum("bhte,bhse->bhts", q + b_q[:, None], k + b_k[:, None]) / w_q.shape[1] ** 0.5
    return torch.stack([logits[:, h][:, ~FUTURE].max() for h in range(len(w_q))])


def parts(model: nn.Module) -> tuple[Tensor, ...]:
    if isinstance(model, LanguageModel):
        return tuple(torch.stack(part).detach().clone() for part in list(zip(*model.qk_weights(), strict=True))[2:])
    w = [each.detach().clone() for each in find_qk_parameters(model)[0].weights()]
    return (*w, *(b.detach().clone().view(2, 8) for b in model.self_attn.in_proj_bias.chunk(3)[:2]))


def run(model: nn.Module) -> Tensor:
    """A forward pass; returns the tokens that its attention reads."""
    if isinstance(model, LanguageModel):
        model(TOKENS)
        return model.trace(TOKENS)[0].inputs
    model(X, src_mask=FUTURE)
    return X


@pytest.mark.parametrize("build", [ours, theirs])
def test_clip_scales_the_logits_of_a_head_to_the_threshold_and_leaves_heads_below(build):
    model = build()
    largest = largest_logits_by_hand(run(model), *parts(model))
    threshold = float(largest.detach().mean())  # of two heads
    clip, before = QKClip(model, threshold), parts(model)
    x = run(model)
    clip()
    gamma = (threshold / largest).clamp(max=1)
    assert 0 < int((gamma < 1).sum()) < 2
    for old, new in zip(before, parts(model), strict=True):
        torch.testing.assert_close(new, gamma.sqrt().view(-1, *[1] * (old.ndim - 1)) * old)
    torch.testing.assert_close(largest_logits_by_hand(x, *parts(model)), gamma * largest)


def test_clip_takes_the_largest_of_all_passes_since_its_last_call_and_none_in_evaluation():
    model = theirs()
    clip = QKClip(model, 1e-3)
    model(X, src_mask=FUTURE)
    model(2 * X, src_mask=FUTURE)
    expected = torch.maximum(*(largest_logits_by_hand(x, *parts(model)) for x in (X, 2 * X)))
    torch.testing.assert_close(clip.largest[0], expected)
    clip()
    before = parts(model)
    model.eval()
    model(X, src_mask=FUTURE)
    clip()
    assert all(torch.equal(old, new) for old, new in zip(before, parts(model), strict=True))


@pytest.mark.parametrize("build", [ours, theirs])
def test_decay_multiplies_query_and_key_weights_and_nothing_else(build):
    model = build()
    before, weights = {n: p.detach().clone() for n, p in model.named_parameters()}, parts(model)[:2]
    decay_queries_and_keys(model, 0.25)
    for old, new in zip(weights, parts(model)[:2], strict=True):
        torch.testing.assert_close(new, 0.75 * old)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    if build is theirs:
        assert changed == {"self_attn.in_proj_weight"}
        assert torch.equal(model.self_attn.in_proj_weight[32:], before["self_attn.in_proj_weight"][32:])
    else:
        assert changed == {f"layers.0.attention.{name}.weight" for name in ("query", "key")}


def test_decay_after_an_update_is_rate_times_strength():
    model = ours()
    before = parts(model)[0]
    after_update(model, "qk-weight-decay", 0.5)(0.1)
    torch.testing.assert_close(parts(model)[0], 0.95 * before)
    after_update(model, "none", 0.0)(0.1)
    torch.testing.assert_close(parts(model)[0], 0.95 * before)


@pytest.mark.parametrize("peer", ["qk-norm", "sigma-reparam"])
def test_a_changed_model_can_be_measured_and_regularised(peer):
    model = ours()
    retrofit(model, peer, 12)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert measure(model, TOKENS).numbers["concentration"] > 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    LocAteR(0.1)(model).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(("peer", "strength"), [("qk-clip", 0.0), ("qk-norm", 1.0), ("none", 2.0), ("dropout", 0.0)])
def test_peers_and_strengths_that_are_not_allowed_are_refused(peer, strength):
    with pytest.raises(ArgumentError, match="must"):
        after_update(ours(), peer, strength)


@pytest.mark.parametrize("peer", ["qk-norm", "sigma-reparam"])
def test_a_model_is_changed_once(peer):
    model = ours()
    retrofit(model, peer, 12)
    with pytest.raises(ArgumentError, match="must"):
        retrofit(model, peer, 12)


def test_attention_between_two_sequences_cannot_be_watched():
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    QKClip(attention, 1.0)
    with pytest.raises(ArgumentError, match="self-attention"):
        attention(X, X.clone(), X.clone())
