"""Query and key parameters inside a running model of `transformers`, so that LocAteR can train it.

The descriptions of `families` say where they are; nothing here imports `transformers`. Wrappers of training
(DistributedDataParallel, torch.compile) are looked through.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qkrepro.errors import ArgumentError
from qkrepro.models.families import FAMILIES, Family, Naming


@dataclass(frozen=True)
class ModelQKParameters:
    """The parameters that hold a layer's query and key weights, as the model stores them (one for both when packed)."""

    query: Tensor
    key: Tensor
    heads: int
    kv_heads: int
    naming: Naming

    def split(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """w_q and w_k, (heads, d_head, d_model), of two tensors laid out like the parameters: weights or gradients.

        Views, except that a key head shared by several query heads is repeated.
        """
        query, key = (w.mT if self.naming.transposed else w for w in (query, key))  # (rows, d_model)
        if self.naming.layout == "thirds":
            query, key = query.chunk(3)[0], key.chunk(3)[1]
        if self.naming.layout == "interleaved":
            packed = query.view(self.heads, 3, -1, query.shape[-1])
            return packed[:, 0], packed[:, 1]
        w_q, w_k = query.reshape(self.heads, -1, query.shape[-1]), key.reshape(self.kv_heads, -1, key.shape[-1])
        return w_q, w_k.repeat_interleave(self.heads // self.kv_heads, dim=0) if self.grouped else w_k

    def weights(self) -> tuple[Tensor, Tensor]:
        """w_q and w_k, (heads, d_head, d_model)."""
        return self.split(self.query, self.key)

    @property
    def grouped(self) -> bool:
        """Whether query heads share key heads."""
        return self.heads != self.kv_heads


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel (`module`) and torch.compile (`_orig_mod`), in any order."""
    for _ in range(8):
        inner = model._modules.get("module") or model._modules.get("_orig_mod")
        if inner is None or len(model._modules) != 1:
            break
        model = inner
    return model


def attached_parameters(model: nn.Module) -> list[ModelQKParameters]:
    """Query and key parameters of every attention layer of a model of `transformers`, wrapped or not.

    Raises ArgumentError for a model without `config.model_type`, of an unknown family, or without the layers that
    its family has.
    """
    model = unwrapped(model)
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    family = next((family for family in FAMILIES if model_type in family.model_types), None)
    if family is None or len(family.parts) > 1:
        known = ", ".join(kind for family in FAMILIES if len(family.parts) == 1 for kind in family.model_types)
        raise ArgumentError(
            f"model has model_type {model_type!r}; allowed: {known}, or LocAteR(kappa) for other models"
        )
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    modules = dict(model.named_modules())
    for naming in family.namings:
        found = [
            _parameters(modules, name, naming, text, family) for name in modules if _is_query(name, naming, family)
        ]
        if found:
            return found
    raise ArgumentError(f"model is a {type(model).__name__} without {family.name} attention layers")


def _is_query(name: str, naming: Naming, family: Family) -> bool:
    before, after = naming.query.split("{layer}")
    head, found, number = name.removesuffix(after).rpartition(before)
    vision = bool(family.parts[0].marker) and "vision" in head and "vision" not in family.parts[0].marker
    return name.endswith(after) and bool(found) and number.isdecimal() and head[-1:] in ("", ".") and not vision


def _parameters(
    modules: dict[str, nn.Module], name: str, naming: Naming, config: Any, family: Family
) -> ModelQKParameters:
    query_end, key_end = (template.split("{layer}")[1] for template in (naming.query, naming.key))
    query, key = modules[name].weight, modules[name.removesuffix(query_end) + key_end].weight
    assert isinstance(query, Tensor)
    assert isinstance(key, Tensor)
    heads = int(getattr(config, family.sizes.get("heads", "num_attention_heads")))
    return ModelQKParameters(query, key, heads, int(getattr(config, "num_key_value_heads", None) or heads), naming)


def trainer_callback(locater: Any) -> Any:
    """A callback for the Trainer of `transformers` that adds LocAteR's gradient before each step of the optimiser.

        Trainer(model, arguments, train_dataset=data, callbacks=[trainer_callback(LocAteR.for_model(model))])

    The loss that the Trainer logs is without the term. The gradient is added after clipping, once a step, whatever the
    gradient accumulation; under DistributedDataParallel each process adds the same.
    """
    from transformers import TrainerCallback

    class LocAteRCallback(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            locater(model).backward()

    return LocAteRCallback()
