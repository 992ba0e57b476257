import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkrepro.errors import ArgumentError, ShapeError
from qkrepro.models.transformer import Attention, LanguageModel, Layer, ModelConfig, sinusoids

TINY = ModelConfig(vocabulary=30, d_model=16, d_ff=24, max_length=12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(**changes: object) -> LanguageModel:
    settings = {"vocabulary": 30, "d_model": 16, "d_ff": 24, "max_length": 12} | changes
    return LanguageModel(ModelConfig(**settings), generator())  # type: ignore[arg-type]


def tokens_of(batch: int = 3, length: int = 10) -> Tensor:
    return torch.randint(30, (batch, length), generator=generator(1))


def pytorch_layer(ours: Layer, config: ModelConfig) -> nn.TransformerEncoderLayer:
    """PyTorch's layer with the weights of ours, moved by hand."""
    theirs = nn.TransformerEncoderLayer(
        config.d_model, config.heads, config.d_ff, 0.0, batch_first=True, norm_first=config.norm == "pre"
    )
    parts = [ours.attention.query, ours.attention.key, ours.attention.value]
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    pairs = [
        (theirs.self_attn.out_proj, ours.attention.out),
        (theirs.linear1, ours.up),
        (theirs.linear2, ours.down),
        (theirs.norm1, ours.attention_norm),
        (theirs.norm2, ours.feedforward_norm),
    ]
    for target, source in pairs:
        target.load_state_dict(source.state_dict())
    return theirs


def random_layer(config: ModelConfig) -> Layer:
    """A layer whose biases and norms are not zeros and ones, so that leaving one out shows."""
    layer = Layer(config)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator(2)))
    return layer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_layer_equals_pytorch_encoder_layer_under_causal_mask(norm: str, heads: int, training: bool) -> None:
    config = ModelConfig(30, d_model=16, d_ff=24, heads=heads, norm=norm, dropout=0.0)
    ours = random_layer(config).train(training)
    theirs = pytorch_layer(ours, config).train(training)
    x = torch.randn(3, 10, 16, generator=generator())
    mask = nn.Transformer.generate_square_subsequent_mask(10)
    torch.testing.assert_close(ours(x), theirs(x, src_mask=mask, is_causal=True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
def test_traced_attention_equals_that_of_pytorch(heads: int) -> None:
    config = ModelConfig(30, d_model=16, d_ff=24, heads=heads)
    layer = random_layer(config).eval()
    x = torch.randn(3, 10, 16, generator=generator())
    mask = nn.Transformer.generate_square_subsequent_mask(10)
    theirs = pytorch_layer(layer, config).self_attn
    _, expected = theirs(x, x, x, attn_mask=mask, average_attn_weights=False)
    torch.testing.assert_close(layer.trace(x).attention, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_later_tokens_do_not_change_earlier_ones(norm: str) -> None:
    model = model_of(layers=2, heads=2, norm=norm).eval()
    tokens = tokens_of()
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 30
    before, after = model.hidden(tokens), model.hidden(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 6], after[:, 6])


@pytest.mark.parametrize("training", [False, True])
def test_a_low_temperature_is_the_same_function_as_larger_query_and_key_weights(training: bool) -> None:
    cold, large = model_of(heads=2, dropout=0.0, temperature=0.25), model_of(heads=2, dropout=0.0)
    with torch.no_grad():
        for weights in large.qk_weights():
            weights.w_q.mul_(2)
            weights.w_k.mul_(2)
    (traced,), (expected,) = (model.train(training).trace(tokens_of()) for model in (cold, large))
    torch.testing.assert_close(traced.logits, expected.logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(traced.outputs, expected.outputs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(traced.logits, model_of(heads=2, dropout=0.0).trace(tokens_of())[0].logits)


def test_a_temperature_of_one_leaves_every_bit_as_pytorch_gives_it() -> None:
    """Pin the scale that PyTorch takes by itself: the records were made with it."""
    attention = Attention(16, 2)
    q, k, v = torch.randn(3, 2, 2, 5, 8, generator=generator()).unbind()
    for parts in ((q, k, v), (q.double(), k.double(), v.double())):
        given = F.scaled_dot_product_attention(*parts, is_causal=True, scale=1 / attention.divisor)
        assert torch.equal(given, F.scaled_dot_product_attention(*parts, is_causal=True))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_query_and_key_weights_give_the_traced_logits(norm: str) -> None:
    model = model_of(layers=2, heads=4, norm=norm).eval()
    with torch.no_grad():
        for weights in model.qk_weights():  # zero biases at the start would hide a swapped one
            weights.b_q.copy_(torch.randn(4, generator=generator(weights.head)))
            weights.b_k.copy_(torch.randn(4, generator=generator(9)))
    traces = model.trace(tokens_of())
    heads = [(weights.layer, weights.head) for weights in model.qk_weights()]
    assert heads == [(layer, head) for layer in range(2) for head in range(4)]
    for layer, head, w_q, w_k, b_q, b_k in model.qk_weights():
        x = traces[layer].inputs
        logits = (x @ w_q.T + b_q) @ (x @ w_k.T + b_k).mT / math.sqrt(4)
        torch.testing.assert_close(traces[layer].logits[:, head], logits, rtol=1e-5, atol=1e-5)


def test_layers_of_a_trace_follow_one_another_to_the_hidden_tokens() -> None:
    model = model_of(layers=3).eval()
    traces = model.trace(tokens_of())
    torch.testing.assert_close(traces[1].inputs, traces[0].outputs)
    torch.testing.assert_close(traces[2].outputs, model.hidden(tokens_of()))


def test_output_is_tied_to_the_embedding() -> None:
    model = model_of().eval()
    expected = model.hidden(tokens_of()) @ model.embedding.weight.T
    torch.testing.assert_close(model(tokens_of()), expected)
    assert sum(30 in parameter.shape for parameter in model.parameters()) == 1


def test_first_token_enters_as_scaled_embedding_plus_position() -> None:
    model = model_of().eval()
    position = torch.cat([torch.zeros(8), torch.ones(8)])  # sines and cosines of 0
    expected = model.embedding.weight[7] * 4 + position
    torch.testing.assert_close(model.trace(torch.tensor([[7, 3]]))[0].inputs[0, 0], expected)


def test_initial_weights_have_the_bounds_and_deviations_of_fairseq() -> None:
    model = LanguageModel(ModelConfig(20_000), generator())
    attention = model.layers[0].attention
    xavier = math.sqrt(6 / (128 + 128))
    for projection, bound in ((attention.query, xavier / math.sqrt(2)), (attention.out, xavier)):
        assert 0.99 * bound < float(projection.weight.detach().abs().max()) <= bound
        assert not projection.bias.any()
    deviation = float(model.embedding.weight.detach().std())
    assert abs(deviation * math.sqrt(128) - 1) < 4 / math.sqrt(2 * 20_000 * 128)  # four standard errors


def test_equal_generators_give_equal_models_and_global_seed_is_the_default() -> None:
    a, b = LanguageModel(TINY, generator(5)), LanguageModel(TINY, generator(5))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    torch.manual_seed(5)
    c = LanguageModel(TINY)
    torch.manual_seed(5)
    d = LanguageModel(TINY)
    assert all(torch.equal(p, q) for p, q in zip(c.parameters(), d.parameters(), strict=True))


def test_sinusoids_run_from_frequency_one_to_one_ten_thousandth() -> None:
    table = sinusoids(5, 8)
    expected = torch.tensor([math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)])
    torch.testing.assert_close(table[3, [0, 3, 4, 7]], expected)


@pytest.mark.parametrize(
    "changes",
    [
        *[{"vocabulary": 0}, {"heads": 3}, {"d_model": 9}, {"dropout": 1.0}, {"dropout": -0.1}, {"norm": "middle"}],
        {"temperature": 0.0},
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=str(next(iter(changes)) if "heads" not in changes else "heads")):
        model_of(**changes)


@pytest.mark.parametrize("shape", [(3, 13), (3, 0), (3,)])
def test_tokens_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="max_length = 12"):
        model_of().hidden(torch.zeros(shape, dtype=torch.int64))
