"""The architectures whose checkpoints can be read: one short description each, of names, packing, norms and multiplier.

Names are those that `transformers` writes (the text after the model's own prefix, {layer} where the number stands).
A description says nothing about sizes: those come from the model's config.json.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Layout = Literal["separate", "thirds", "interleaved"]


@dataclass(frozen=True)
class Norm:
    """The normalisation whose output the query and key projections read."""

    kind: Literal["layer", "rms"]
    name: str  # tensor name without .weight, with {layer} or {previous} for the layer before
    first: str | None = None  # the name at layer 0, for names with {previous}
    gain_offset: float = 0.0  # Gemma stores gain - 1


@dataclass(frozen=True)
class Naming:
    """Where the query and key weights of a layer are; one name for both when they are packed into one tensor."""

    query: str
    key: str
    norm: Norm
    layout: Layout = "separate"
    transposed: bool = False  # (d_model, rows) as Conv1D stores it, rather than (rows, d_model)


@dataclass(frozen=True)
class Part:
    """A tower of a model: the word that its tensor names hold, and where its sizes stand in config.json."""

    name: str = ""
    marker: str = ""  # decides between several prefixes; required when the model has several parts
    config_key: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)  # of keys that published configs leave out


@dataclass(frozen=True)
class Family:
    """One architecture. `sizes` maps d_model, heads, kv_heads, d_head, layers to the keys of config.json."""

    name: str
    model_types: tuple[str, ...]
    namings: tuple[Naming, ...]
    sizes: dict[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = (Part(),)
    defaults: dict[str, Any] = field(default_factory=dict)  # as Part.defaults, for all parts
    post_norm: Norm | None = None  # replaces the naming's norm where the config says that norms come last
    multiplier: Literal["d_head", "gpt2", "query_pre_attn_scalar", "temperature"] = "d_head"
    rotary: bool = False
    qk_norm: tuple[str, str] | None = None  # names of the gains on queries and keys, per head dimension
    qk_gain_offset: float = 0.0
    softcap: bool = False


SIZES = {
    "d_model": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "layers": "num_hidden_layers",
}
BERT = Naming(
    "encoder.layer.{layer}.attention.self.query",
    "encoder.layer.{layer}.attention.self.key",
    Norm("layer", "encoder.layer.{previous}.output.LayerNorm", first="embeddings.LayerNorm"),
)
DISTILBERT = Naming(
    "transformer.layer.{layer}.attention.q_lin",
    "transformer.layer.{layer}.attention.k_lin",
    Norm("layer", "transformer.layer.{previous}.output_layer_norm", first="embeddings.LayerNorm"),
)
GPT2 = Naming("h.{layer}.attn.c_attn", "h.{layer}.attn.c_attn", Norm("layer", "h.{layer}.ln_1"), "thirds", True)
NEOX = Naming(
    "layers.{layer}.attention.query_key_value",
    "layers.{layer}.attention.query_key_value",
    Norm("layer", "layers.{layer}.input_layernorm"),
    "interleaved",
)
OPT = Naming(
    "decoder.layers.{layer}.self_attn.q_proj",
    "decoder.layers.{layer}.self_attn.k_proj",
    Norm("layer", "decoder.layers.{layer}.self_attn_layer_norm"),
)
LLAMA_NORM = Norm("rms", "layers.{layer}.input_layernorm")
LLAMA = Naming("layers.{layer}.self_attn.q_proj", "layers.{layer}.self_attn.k_proj", LLAMA_NORM)
GEMMA = Naming(LLAMA.query, LLAMA.key, Norm("rms", LLAMA_NORM.name, gain_offset=1.0))
VIT_SAVED = Naming(
    "encoder.layer.{layer}.attention.attention.query",
    "encoder.layer.{layer}.attention.attention.key",
    Norm("layer", "encoder.layer.{layer}.layernorm_before"),
)
VIT_IN_MEMORY = Naming(
    "layers.{layer}.attention.q_proj",
    "layers.{layer}.attention.k_proj",
    Norm("layer", "layers.{layer}.layernorm_before"),
)
CLIP = Naming(
    "encoder.layers.{layer}.self_attn.q_proj",
    "encoder.layers.{layer}.self_attn.k_proj",
    Norm("layer", "encoder.layers.{layer}.layer_norm1"),
)
OWN = Naming(
    "layers.{layer}.attention.query",
    "layers.{layer}.attention.key",
    Norm("layer", "layers.{layer}.attention_norm"),
)
QK_NORM = ("layers.{layer}.self_attn.q_norm", "layers.{layer}.self_attn.k_norm")
GEMMA2_DEFAULTS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256}
CLIP_TEXT_DEFAULTS = {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 12}
CLIP_VISION_DEFAULTS = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
FAMILIES: tuple[Family, ...] = (
    Family("BERT, MiniLM", ("bert",), (BERT,)),
    Family("RoBERTa", ("roberta", "xlm-roberta", "camembert"), (BERT,)),
    Family(
        "DistilBERT",
        ("distilbert",),
        (DISTILBERT,),
        sizes={"d_model": "dim", "heads": "n_heads", "layers": "n_layers"},
    ),
    Family(
        "GPT-2",
        ("gpt2",),
        (GPT2,),
        sizes={"d_model": "n_embd", "heads": "n_head", "layers": "n_layer"},
        multiplier="gpt2",
    ),
    Family("GPT-NeoX, Pythia", ("gpt_neox",), (NEOX,), rotary=True, defaults={"partial_rotary_factor": 0.25}),
    Family("OPT", ("opt",), (OPT,), post_norm=Norm("layer", "decoder.layers.{previous}.final_layer_norm")),
    Family("Llama", ("llama",), (LLAMA,), rotary=True),
    Family("Mistral", ("mistral",), (LLAMA,), rotary=True, defaults={"num_key_value_heads": 8}),
    Family("Qwen2", ("qwen2",), (LLAMA,), rotary=True),
    Family("Qwen3", ("qwen3",), (LLAMA,), rotary=True, qk_norm=QK_NORM, defaults={"head_dim": 128}),
    Family("Gemma", ("gemma",), (GEMMA,), rotary=True, defaults={"head_dim": 256}),
    Family(
        "Gemma 2",
        ("gemma2",),
        (GEMMA,),
        rotary=True,
        softcap=True,
        multiplier="query_pre_attn_scalar",
        defaults={**GEMMA2_DEFAULTS, "attn_logit_softcapping": 50.0},
    ),
    Family(
        "Gemma 3",
        ("gemma3", "gemma3_text"),
        (GEMMA,),
        parts=(Part(marker="language_model", config_key="text_config"),),
        rotary=True,
        multiplier="query_pre_attn_scalar",
        qk_norm=QK_NORM,
        qk_gain_offset=1.0,
        defaults={**GEMMA2_DEFAULTS, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6},
    ),
    Family("ViT", ("vit",), (VIT_SAVED, VIT_IN_MEMORY)),
    Family(
        "CLIP",
        ("clip",),
        (CLIP,),
        parts=(
            Part("text", "text_model", "text_config", CLIP_TEXT_DEFAULTS),
            Part("vision", "vision_model", "vision_config", CLIP_VISION_DEFAULTS),
        ),
    ),
    Family("CLIP text", ("clip_text_model",), (CLIP,), parts=(Part("", "text_model"),), defaults=CLIP_TEXT_DEFAULTS),
    Family(
        "CLIP vision", ("clip_vision_model",), (CLIP,), parts=(Part("", "vision_model"),), defaults=CLIP_VISION_DEFAULTS
    ),
    Family(
        "qkrepro train",
        ("qkrepro",),
        (OWN,),
        sizes={"d_model": "d_model", "heads": "heads", "layers": "layers"},
        post_norm=Norm("layer", "layers.{previous}.feedforward_norm"),
        multiplier="temperature",
    ),
)
FAMILY_OF = {model_type: family for family in FAMILIES for model_type in family.model_types}
