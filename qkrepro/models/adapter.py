"""Query and key parameters inside a running model of `transformers`, so that LocAteR can train it.

The descriptions of `families` say where they are; nothing here imports `transformers`. Wrappers of training
(DistributedDataParallel, torch.compile) are looked through.
"""

from typing import Any

from torch import Tensor, nn

from qkrepro.errors import ArgumentError, check_choice
from qkrepro.models.families import FAMILY_OF, Family, Naming
from qkrepro.models.packing import QKParameters


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel (`module`) and torch.compile (`_orig_mod`), in any order."""
    for _ in range(8):
        inner = model._modules.get("module") or model._modules.get("_orig_mod")
        if inner is None or len(model._modules) != 1:
            break
        model = inner
    return model


def attached_parameters(model: nn.Module) -> list[QKParameters]:
    """Return the query and key parameters of every attention layer of a model of `transformers`, wrapped or not.

    Raises ArgumentError for a model without `config.model_type`, of an unknown family, or without the layers that
    its family has.
    """
    model = unwrapped(model)
    config: Any = getattr(model, "config", None)
    model_type: Any = getattr(config, "model_type", None)
    known = {name: family for name, family in FAMILY_OF.items() if len(family.parts) == 1}
    check_choice("model_type", model_type, known)  # other models take LocAteR(kappa)
    family = known[model_type]
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    modules = dict(model.named_modules())
    for naming in family.namings:
        names = [name for name in modules if _is_query(name, naming, family)]
        if names:
            return [_parameters(modules, name, naming, text, family) for name in names]
    raise ArgumentError(f"model is a {type(model).__name__} without {family.name} attention layers")


def _is_query(name: str, naming: Naming, family: Family) -> bool:
    before, after = naming.query.split("{layer}")
    head, separator, number = name.removesuffix(after).rpartition(before)
    vision = bool(family.parts[0].marker) and "vision" in head and "vision" not in family.parts[0].marker
    return name.endswith(after) and bool(separator) and number.isdecimal() and head[-1:] in ("", ".") and not vision


def _parameters(modules: dict[str, nn.Module], name: str, naming: Naming, config: Any, family: Family) -> QKParameters:
    query_end, key_end = (template.split("{layer}")[1] for template in (naming.query, naming.key))
    query, key = modules[name].weight, modules[name.removesuffix(query_end) + key_end].weight
    assert isinstance(query, Tensor)
    assert isinstance(key, Tensor)
    heads = int(getattr(config, family.sizes.get("heads", "num_attention_heads")))
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return QKParameters(query, key, heads, kv_heads, naming.layout, naming.transposed)


def trainer_callback(locater: Any) -> Any:
    """Return a callback for the Trainer of `transformers` that adds LocAteR's gradient before each optimiser step.

        Trainer(model, arguments, train_dataset=data, callbacks=[trainer_callback(LocAteR.for_model(model))])

    The loss that the Trainer logs is without the term. The gradient is added after clipping, once per step, whatever
    the gradient accumulation; under DistributedDataParallel each process adds the same.
    """
    from transformers import TrainerCallback

    class LocAteRCallback(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            locater(model).backward()

    return LocAteRCallback()
