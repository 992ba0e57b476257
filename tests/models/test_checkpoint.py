"""Checkpoints as models: names with wrappers, dtypes, layers, refusals, our own runs, and the table's numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import make, save

from qkrepro.errors import ArgumentError, CheckpointError
from qkrepro.models.checkpoint import open_towers, qk_heads, qk_weights
from qkrepro.models.spectrum_report import qk_table
from qkrepro.models.transformer import LanguageModel, ModelConfig
from qkrepro.models.weight_files import Checkpoint, open_checkpoint
from qkrepro.theory.spectrum import qk_eigenvalues, qk_moments


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("bert"), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("llama-biased"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(bert: Path, tmp_path: Path) -> Path:
    return copied(bert, tmp_path)


def copied(source: Path, target: Path, **changes: Any) -> Path:
    for name in ("config.json", "model.safetensors"):
        (target / name).write_bytes((source / name).read_bytes())
    if changes:
        config = json.loads((target / "config.json").read_text()) | changes
        (target / "config.json").write_text(json.dumps(config))
    return target


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")


def assert_same_weights(folder: Path, expected: Path, heads: int) -> None:
    pairs = list(zip(qk_weights(folder), qk_weights(expected), strict=True))
    assert len(pairs) == heads
    assert all(torch.equal(ours[2], theirs[2]) and torch.equal(ours[3], theirs[3]) for ours, theirs in pairs)


def test_weights_come_in_order_as_float64_heads(bert: Path) -> None:
    weights = list(qk_weights(bert))
    assert [(layer, head) for layer, head, _, _ in weights] == [
        (layer, head) for layer in range(3) for head in range(4)
    ]
    assert all(w_q.shape == w_k.shape == (6, 24) and w_q.dtype == torch.float64 for _, _, w_q, w_k in weights)
    stored = load_file(bert / "model.safetensors")["encoder.layer.2.attention.self.query.weight"]
    assert torch.equal(weights[9][2], stored[6:12].double())


def test_only_query_and_key_tensors_and_small_vectors_are_read_and_only_when_asked_for(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def watched(path: Path) -> Checkpoint:
        opened = open_checkpoint(path)
        tensors = {
            name: replace(tensor, read=lambda name=name, tensor=tensor: read.append(name) or tensor.read())
            for name, tensor in opened.tensors.items()
        }
        return replace(opened, tensors=tensors)

    monkeypatch.setattr("qkrepro.models.checkpoint.open_checkpoint", watched)
    heads = qk_weights(bert)
    next(heads)
    assert read
    assert all(".0." in name or name.startswith("embeddings.LayerNorm") for name in read)
    list(heads)
    assert {name for name in read if name.endswith("weight") and "LayerNorm" not in name} == {
        f"encoder.layer.{layer}.attention.self.{part}.weight" for layer in range(3) for part in ("query", "key")
    }


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.bert.", "model.module.encoder."]
)
def test_prefixes_of_training_wrappers_change_nothing(bert: Path, copy: Path, prefix: str) -> None:
    rewrite(copy, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert_same_weights(copy, bert, heads=12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_becomes_float64_before_anything_is_computed(copy: Path, dtype: torch.dtype) -> None:
    rewrite(copy, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    stored = load_file(copy / "model.safetensors")
    first = next(iter(qk_heads(copy)))
    assert first.w_q.dtype == torch.float64
    assert torch.equal(first.w_q, stored["encoder.layer.0.attention.self.query.weight"][:6].double())


@pytest.mark.parametrize("layers", [[0, 2], [1]])
def test_only_the_layers_asked_for_are_given(bert: Path, layers: list[int]) -> None:
    assert sorted({layer for layer, _, _, _ in qk_weights(bert, layers)}) == layers


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_does_not_exist_is_an_error(bert: Path, layer: int) -> None:
    with pytest.raises(ArgumentError, match="0 to 2"):
        list(qk_weights(bert, [layer]))


def test_a_sharded_model_equals_the_whole_one(tmp_path: Path) -> None:
    model = make("llama")
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    save(model, whole)
    save(model, sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert_same_weights(sharded, whole, heads=12)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save(make("llama"), tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name} is missing"):
        list(qk_weights(tmp_path))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "quantised weights": ({"quantization_config": {"bits": 4}}, {}),
    "quantised weights \\(.*qweight": ({}, {"encoder.layer.0.attention.self.query.weight": "x.query.qweight"}),
    "unmerged adapter": ({}, {"pooler.dense.bias": "encoder.layer.0.attention.self.query.lora_A.weight"}),
    "model_type must be one of bert, .*Tensors found: .*and .. more": ({"model_type": "mamba"}, {}),
    "num_attention_heads must .*, got None": ({"num_attention_heads": None}, {}),
    "num_attention_heads must .*, got 0": ({"num_attention_heads": 0}, {}),
    "num_attention_heads must .*, got '4'": ({"num_attention_heads": "4"}, {}),
    r"has shape \(24, 24\); config.json asks for \(32, 32\)": ({"hidden_size": 32}, {}),
    "says 2 layers; found .*layer.2": ({"num_hidden_layers": 2}, {}),
    "layer.3.attention.self.query.weight is missing": ({"num_hidden_layers": 4}, {}),
    "layer.999999999999.attention.self.query.weight is missing": ({"num_hidden_layers": 10**12}, {}),
    "layer.1.attention.self.key.weight is missing": ({}, {"encoder.layer.1.attention.self.key.weight": "else"}),
    "position_embedding_type must .*, got 'relative_key'": ({"position_embedding_type": "relative_key"}, {}),
    "no BERT, MiniLM query weights .* tensors found": (
        {},
        {f"encoder.layer.{layer}.attention.self.query.weight": f"q{layer}" for layer in range(3)},
    ),
    "there must be one stack": (
        {},
        {"encoder.layer.1.attention.self.query.weight": "two.encoder.layer.1.attention.self.query.weight"},
    ),
    "the same tensor twice": ({}, {"pooler.dense.bias": "module.pooler.dense.weight"}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_models_that_cannot_be_read_are_refused_with_the_reason(bert: Path, tmp_path: Path, message: str) -> None:
    changes, renamed = REFUSED[message]
    copied(bert, tmp_path, **changes)
    rewrite(tmp_path, lambda tensors: {renamed.get(name, name): tensor for name, tensor in tensors.items()})
    with pytest.raises(CheckpointError, match=message) as caught:
        list(qk_weights(tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_without_a_config_are_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="got no config"):
        open_towers(tmp_path)


def test_weights_that_are_not_finite_are_refused(copy: Path) -> None:
    name = "encoder.layer.1.attention.self.key.weight"
    rewrite(copy, lambda tensors: tensors | {name: tensors[name].clone().fill_(torch.inf)})
    with pytest.raises(CheckpointError, match="layer 1 has non-finite"):
        list(qk_weights(copy))


VALUE = st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=True) | st.text(max_size=4)
VALUE = VALUE | st.lists(VALUE, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "a"]), VALUE)
KEYS = ["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers", "rope_theta"]
KEYS += ["rope_parameters", "rope_scaling", "layer_types", "model_type", "quantization_config", "partial_rotary_factor"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(KEYS), VALUE, min_size=1, max_size=3))
def test_any_config_gives_weights_or_one_of_our_errors(llama: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    copied(llama, tmp_path, **changes)
    try:
        table = qk_table(tmp_path, draws=2, distances=[3])
    except (ArgumentError, CheckpointError):
        return
    assert len(table) == 12


def test_a_run_of_our_own_is_read_with_its_biases(tmp_path: Path) -> None:
    model = LanguageModel(ModelConfig(20, d_model=16, d_ff=8, layers=2, heads=2), torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    save_file(model.state_dict(), tmp_path / "best.safetensors")
    configuration = {"d_model": 16, "layers": 2, "heads": 2, "norm": "post"}
    (tmp_path / "run.json").write_text(json.dumps({"configuration": configuration}))
    traces = model.eval().trace(torch.arange(12).view(1, 12))
    heads = list(qk_heads(tmp_path))
    assert len(heads) == 4
    for head in heads:
        trace = traces[head.layer]
        torch.testing.assert_close(
            head.logits(trace.inputs[0]).float(), trace.logits[0, head.head], rtol=1e-4, atol=1e-5
        )


def test_the_table_equals_the_moments_and_eigenvalues_of_each_head(bert: Path) -> None:
    table = qk_table(bert, draws=2)
    assert len(table) == 12
    for row, head in zip(table.to_dict("records"), qk_heads(bert), strict=True):
        moments, values = qk_moments(head.w_q, head.w_k), qk_eigenvalues(head.w_q, head.w_k)
        w = head.w_q.mT @ head.w_k
        mean = values.mean()
        expected = {
            "temperature": 6**0.5,
            "trace": moments.trace,
            "trace_sq": moments.trace_sq,
            "frobenius": moments.frobenius_sq.sqrt(),
            "spectral_norm": moments.spectral_norm,
            "eigen_mean_model": moments.eigen_mean,
            "eigen_variance_model": moments.eigen_variance,
            "eigen_mean_head": mean.real,
            "eigen_variance_head": (values - mean).square().mean().real,
            "eigen_spread_head": (values - mean).abs().square().mean(),
            "relative_variance": (values - mean).abs().square().mean() / mean.abs().square(),
            "top_share": values.abs().max() / values.abs().sum(),
            "spectral_energy_share": torch.linalg.svdvals(w)[0].square() / torch.linalg.svdvals(w).square().sum(),
            "symmetry_score": (1 + (w @ w).trace() / (w @ w.mT).trace()) / 2,
            "key_bias": (w.new_zeros(24) + head.w_k.mT @ head.b_q).norm() if head.b_q is not None else 0,
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(float(value), rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "llama-yarn", "gemma3"])
def test_the_spectrum_at_a_distance_is_that_of_the_logits_at_that_distance(tmp_path: Path, name: str) -> None:
    folder = save(make(name), tmp_path)
    table = qk_table(folder, [1], distances=[0, 5], draws=2)
    assert len(table) == 8
    for head in qk_heads(folder, [1]):
        bare = replace(head, b_q=None, b_k=None, qk_norm=None, softcap=None)
        d = head.w_q.shape[1]
        x, positions = torch.eye(d, dtype=torch.float64).repeat(2, 1), torch.arange(2).repeat_interleave(d) * 5
        logits = bare.logits(x, positions) / head.multiplier  # keys at 0 and 5, queries at 0 and 5
        for distance, w in ((0, logits[:d, :d]), (5, logits[d:, :d])):
            row = table[(table["head"] == head.head) & (table["distance"] == distance)].iloc[0]
            values = np.linalg.eigvals(w.numpy())
            largest = np.abs(values).max()
            assert row["trace"] == pytest.approx(np.trace(w), rel=1e-7, abs=1e-9)
            assert row["frobenius"] == pytest.approx(np.linalg.norm(w), rel=1e-7)
            assert row["spectral_norm"] == pytest.approx(np.linalg.norm(w, 2), rel=1e-7)
            assert row["top_share"] == pytest.approx(largest / np.abs(values).sum(), rel=1e-6)


def test_a_distance_without_rotary_positions_is_an_error(bert: Path) -> None:
    with pytest.raises(ArgumentError, match="distance must be 0"):
        qk_table(bert, distances=[8])


def test_moments_only_leaves_out_what_needs_eigenvalues_and_changes_nothing_else(bert: Path) -> None:
    full, moments = qk_table(bert), qk_table(bert, moments_only=True)
    assert set(full) - set(moments) == {
        "eigen_spread_head",
        "relative_variance",
        "top_share",
        "top_share_z",
        "relative_variance_percentile",
        "spectral_energy_share_z",
    }
    np.testing.assert_allclose(moments.to_numpy(float), full[list(moments)].to_numpy(float), rtol=1e-12)


def test_folding_the_norm_changes_the_table_as_multiplying_the_weights_does(llama: Path) -> None:
    table = qk_table(llama, fold_norm=True, draws=5)
    assert len(table) == 12
    for row, head in zip(table.to_dict("records"), qk_heads(llama), strict=True):
        assert head.input_norm is not None
        gain = head.input_norm.gain
        moments = qk_moments(head.w_q * gain, head.w_k * gain)
        assert row["trace"] == pytest.approx(float(moments.trace), rel=1e-9)
        assert row["spectral_norm"] == pytest.approx(float(moments.spectral_norm), rel=1e-9)
