"""Small randomly initialised models of every family, made and saved by `transformers`, and the logits inside them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor, nn

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

BASE = {
    "vocab_size": 48,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**BASE, "num_key_value_heads": 2, "head_dim": 8}
IMAGE = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 5, "intermediate_size": 16}
IMAGE |= {"image_size": 8, "patch_size": 4}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}


def _t(model: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**sizes))


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "bert": _t("BertModel", "BertConfig", **BASE),
    "bert-mlm": _t("BertForMaskedLM", "BertConfig", **BASE),
    "roberta": _t("RobertaForMaskedLM", "RobertaConfig", **BASE),
    "xlm-roberta": _t("XLMRobertaModel", "XLMRobertaConfig", **BASE),
    "distilbert": _t(
        "DistilBertForMaskedLM", "DistilBertConfig", vocab_size=48, dim=24, n_layers=3, n_heads=4, hidden_dim=20
    ),
    "gpt2": _t("GPT2LMHeadModel", "GPT2Config", **BASE),
    "gpt2-by-layer": _t("GPT2Model", "GPT2Config", **BASE, scale_attn_by_inverse_layer_idx=True),
    "gpt2-unscaled": _t("GPT2Model", "GPT2Config", **BASE, scale_attn_weights=False),
    "gpt-neox": _t("GPTNeoXForCausalLM", "GPTNeoXConfig", **{**BASE, "hidden_size": 64}),
    "opt": _t("OPTForCausalLM", "OPTConfig", **BASE, ffn_dim=20, word_embed_proj_dim=24),
    "opt-post-norm": _t(
        "OPTForCausalLM", "OPTConfig", **BASE, ffn_dim=20, word_embed_proj_dim=12, do_layer_norm_before=False
    ),
    "llama": _t("LlamaForCausalLM", "LlamaConfig", **GROUPED),
    "llama-biased": _t("LlamaForCausalLM", "LlamaConfig", **GROUPED, attention_bias=True),
    "llama3": _t(
        "LlamaForCausalLM",
        "LlamaConfig",
        **GROUPED,
        rope_parameters={**LLAMA3, "original_max_position_embeddings": 16},
    ),
    "llama-yarn": _t("LlamaForCausalLM", "LlamaConfig", **GROUPED, rope_parameters=YARN),
    "llama-linear": _t(
        "LlamaForCausalLM",
        "LlamaConfig",
        **GROUPED,
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    ),
    "mistral": _t("MistralForCausalLM", "MistralConfig", **GROUPED),
    "qwen2": _t("Qwen2ForCausalLM", "Qwen2Config", **{**BASE, "num_key_value_heads": 2}),
    "qwen3": _t("Qwen3ForCausalLM", "Qwen3Config", **GROUPED),
    "gemma": _t("GemmaForCausalLM", "GemmaConfig", **GROUPED),
    "gemma2": _t("Gemma2ForCausalLM", "Gemma2Config", **GROUPED, query_pre_attn_scalar=11, attn_logit_softcapping=0.5),
    "gemma3": _t(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        **GROUPED,
        query_pre_attn_scalar=11,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma3-with-vision": lambda: transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=dict(GROUPED), vision_config=dict(IMAGE))
    ),
    "vit": _t("ViTModel", "ViTConfig", **IMAGE),
    "vit-classifier": _t("ViTForImageClassification", "ViTConfig", **IMAGE),
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(text_config=dict(BASE), vision_config=dict(IMAGE), projection_dim=16)
    ),
    "clip-text": _t("CLIPTextModel", "CLIPTextConfig", **BASE),
    "clip-vision": _t("CLIPVisionModel", "CLIPVisionConfig", **IMAGE),
}


def make(name: str, *, seed: int = 0) -> nn.Module:
    """The model of that name with every parameter random: gains away from 1 and biases away from 0 too."""
    torch.manual_seed(seed)
    model = MAKERS[name]().eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def save(model: nn.Module, folder: Path, **options: Any) -> Path:
    """Let `transformers` write the model; names and shapes in the file are upstream's."""
    model.save_pretrained(folder, **options)
    return folder


def inputs(model: nn.Module) -> dict[str, Tensor]:
    """A batch of one: 9 tokens, an image, or both."""
    generator = torch.Generator().manual_seed(1)
    tokens = {"input_ids": torch.randint(3, 48, (1, 9), generator=generator)}
    image = {"pixel_values": torch.randn(1, 3, 8, 8, generator=generator)}
    kind = model.config.model_type
    if kind == "clip":
        return tokens | image
    return image if kind in ("vit", "clip_vision_model") else tokens


def logits_inside(model: nn.Module) -> list[Tensor]:
    """What each attention layer hands to its softmax, in order of execution: (heads, T, T), masked entries included."""
    seen: list[Tensor] = []
    softmax = nn.functional.softmax

    def recording(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(values.detach()[0])
        return softmax(values, *args, **kwargs)

    with mock.patch.object(nn.functional, "softmax", recording), torch.no_grad():
        model(**inputs(model))
    return seen


def inputs_of(model: nn.Module, wanted: Callable[[str], bool]) -> list[Tensor]:
    """What the modules with a wanted name read during a forward pass, in order of execution: (T, d_model)."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()[0]))
        for name, module in model.named_modules()
        if wanted(name)
    ]
    with torch.no_grad():
        model(**inputs(model))
    for hook in hooks:
        hook.remove()
    return seen
