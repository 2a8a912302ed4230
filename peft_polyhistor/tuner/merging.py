# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Merges the adapters of one task into the parameters of the encoder, and records the new sizes in its config."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import groupby
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..config import MultiTaskConfig
from ..models.blocks import Block, find_blocks
from .layer import AdapterLayer, Merged, base_layer_of
from .weights import SiteWeights


def merge(
    model: nn.Module, weights: SiteWeights, config: MultiTaskConfig, task: str | None, check_finite: bool = False
) -> None:
    """Merges the weights of one task into the modules that carry the adapters.

    The configs of the model are replaced by copies with the new sizes and a `merged_from` record. `task` is `None` for
    weights that serve all tasks.

    Raises:
        ValueError: An adapter cannot be merged. The model is unchanged.
    """
    layers = [module for module in model.modules() if isinstance(module, AdapterLayer)]
    if any(parameter.is_meta for layer in layers for parameter in layer.base_layer.parameters()):
        raise ValueError(
            "Parameters of the model are offloaded, so nothing can be merged into them. Remove the hooks with "
            "accelerate's `remove_hook_from_submodules` first."
        )
    merged: Merged = {}
    for layer in layers:  # in the order of the model, so that a norm comes before the layer that reads its output
        merged |= layer.merged_parameters(weights.get(layer.site.name, []), merged)
    if check_finite and not all(value.isfinite().all() for value in merged.values()):
        raise ValueError(f"The task {task!r} would merge into parameters that are not finite. Check its adapter.")
    copies: dict[int, Any] = {}  # by identity, so that modules that share a config still share it
    for module in model.modules():
        if isinstance(vars(module).get("config"), PreTrainedConfig):
            deepcopy(module.config, copies)
    configs = [value for value in copies.values() if isinstance(value, PreTrainedConfig)]
    fit_ratios(configs, model, merged)
    for copied in configs if merged else []:  # an adapter of the merged encoder fits no other encoder
        copied.name_or_path = ""
        vars(copied).pop("embedded_name", None)
    for module in model.modules():
        if id(vars(module).get("config")) in copies:
            module.config = copies[id(module.config)]
        if merged and "name_or_path" in vars(module):  # where PEFT looks up the base model
            vars(module)["name_or_path"] = ""
            vars(module).pop("revision", None)
        set_parameters(module, merged)
    for module in model.modules():
        if isinstance(vars(module).get("config"), PreTrainedConfig):
            vars(module.config)["merged_from"] = {
                "peft_type": config.method,
                "task": task,
                "base_model": config.base_model_name_or_path or None,
                "embedded_encoder": (config.made_for or {}).get("encoder"),
            }
            break  # the outermost config is the one that is saved


def fit_ratios(configs: Sequence[PreTrainedConfig], model: nn.Module, merged: Mapping[Tensor, Tensor]) -> None:
    """Writes the new width of the feed-forward blocks into the encoder's config.

    Raises:
        ValueError: The config cannot express the new width.
    """
    if all(parameter.shape == value.shape for parameter, value in merged.items()):
        return
    blocks = find_blocks(model)
    family: Any = blocks[0].widens
    stages = [list(stage) for _, stage in groupby(blocks, lambda block: block.name.rpartition(".")[0])]
    groups = stages if family.per_stage else [blocks]
    sizes = [[(block.width, _inner_width(model, block, merged)) for block in group] for group in groups]
    ratios = [find_ratio(group) for group in sizes]
    if None in ratios:
        raise ValueError(
            f"The feed-forward blocks would have {sizes} channels outside and inside, which one `{family.ratio}` per "
            f"{'stage' if family.per_stage else 'encoder'} cannot express. Give each block an adapter with the same "
            "reduction factor, or use `bake`."
        )
    values = [int(ratio) if family.is_whole else ratio for ratio in ratios if ratio]
    value = values if family.per_stage else values[0]
    kind = type(_config_of(model, blocks[0]))
    for config in configs:
        if type(config) is not kind:
            continue
        if hasattr(config, "model_args"):  # the config of a wrapper around timm
            config.model_args = {**(config.model_args or {}), family.ratio: value}
        elif hasattr(config, family.ratio):
            setattr(config, family.ratio, value)
        else:
            raise ValueError(
                f"A {kind.__name__} has no field `{family.ratio}`, so the encoder could not be built again. "
                "Create it as TimmWrapperModel(TimmWrapperConfig(architecture=..., model_args={...})) of transformers."
            )


def find_ratio(sizes: Iterable[tuple[int, int]]) -> float | None:
    """Returns a ratio with int(ratio * outer) = inner for all pairs (outer, inner), or `None` if there is none."""
    sizes = list(sizes)
    low = max(inner / outer for outer, inner in sizes)
    high = min((inner + 1) / outer for outer, inner in sizes)
    ratios = (low, (low + high) / 2)  # the second ratio is for pairs where the first is rounded down
    return next((ratio for ratio in ratios if all(int(ratio * outer) == inner for outer, inner in sizes)), None)


def _config_of(model: nn.Module, block: Block) -> PreTrainedConfig | None:
    """Returns the config of the innermost module around a block that has one."""
    names = block.name.split(".")
    around = [model, *(model.get_submodule(".".join(names[: i + 1])) for i in range(len(names)))]
    found = [vars(module).get("config") for module in around]
    return next((config for config in reversed(found) if isinstance(config, PreTrainedConfig)), None)


def _inner_width(model: nn.Module, block: Block, merged: Mapping[Tensor, Tensor]) -> int:
    assert block.widens is not None
    module = base_layer_of(model.get_submodule(block.feed_forward.module))
    weight = module.get_parameter(f"{block.widens.layers[0]}.weight")
    return len(merged.get(weight, weight))


def set_parameters(module: nn.Module, values: Mapping[Tensor, Tensor]) -> None:
    """Sets new values of the module's own parameters, not of its submodules; a value may have a larger shape."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        value = values.get(parameter)
        if value is None:
            continue
        if value.shape == parameter.shape:
            parameter.data.copy_(value)
            continue
        setattr(module, name, nn.Parameter(value.to(parameter).contiguous(), parameter.requires_grad))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        if isinstance(module, nn.Conv2d):
            module.in_channels = module.out_channels = module.groups = len(module.weight)
