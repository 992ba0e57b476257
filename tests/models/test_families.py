"""Each family's weights are read as the model reads them: our logits are those inside the model, head by head."""

import re
from pathlib import Path

import pytest
import torch
from tiny_models import MAKERS, inputs_of, logits_inside, make, save

from qkrepro.models.checkpoint import qk_heads, qk_layers

PROJECTION = re.compile(r".*(?:self\.query|q_lin|c_attn|query_key_value|q_proj)$")


@pytest.mark.parametrize("name", MAKERS)
def test_logits_of_the_weights_read_equal_the_logits_inside_the_model(name: str, tmp_path: Path) -> None:
    model = make(name)
    heads = list(qk_heads(save(model, tmp_path)))
    inside, x = logits_inside(model), inputs_of(model, lambda module: bool(PROJECTION.match(module)))
    assert 0 < len(inside) == len(x) == len({(head.part, head.layer) for head in heads})
    layers = sorted({(head.part, head.layer) for head in heads}, key=lambda at: (at[0] == "text", at))  # as CLIP runs
    for head in heads:
        index = layers.index((head.part, head.layer))
        theirs = inside[index][head.head].double()
        ours = head.logits(x[index])
        visible = theirs > -1e30  # the causal mask adds the lowest number of the dtype
        assert bool(visible.any(-1).all())
        torch.testing.assert_close(ours[visible], theirs[visible], rtol=1e-4, atol=2e-5)
        assert float(theirs[visible].std()) > 0.01


@pytest.mark.parametrize("name", MAKERS)
def test_tokens_without_the_gain_and_bias_read_are_normalised_and_folded_weights_give_their_logits(
    name: str, tmp_path: Path
) -> None:
    model, compared = make(name), 0
    layers = sorted(qk_layers(save(model, tmp_path)), key=lambda layer: layer.part == "text")  # as CLIP runs
    for layer, x in zip(layers, inputs_of(model, lambda module: bool(PROJECTION.match(module))), strict=True):
        if layer.input_norm is None:
            assert name == "opt-post-norm"  # its first layer reads embeddings as they are
            assert layer.layer == 0
            continue
        norm = layer.head(1).input_norm
        bias = 0 if norm.bias is None else norm.bias
        bare = (x.double() - bias) / norm.gain  # (T, d_model)
        torch.testing.assert_close(bare.square().mean(-1), torch.ones(len(x)).double(), rtol=1e-3, atol=0)
        torch.testing.assert_close(layer.folded().head(1).logits(bare), layer.head(1).logits(x), rtol=1e-9, atol=1e-9)
        compared += 1
    assert compared
