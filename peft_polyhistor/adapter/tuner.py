# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Puts adapters into a model: the PEFT tuner of every bottleneck method."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _ExcludedModule, check_target_module_exists
from torch import nn

from ..config import BottleneckConfig
from ..models.blocks import Block, find_blocks
from ..models.encoder import StageEncoder
from ..models.multitask import MultiTaskDenseModel
from .routing import Adapter, TaskAdapters
from .site import AdapterSite, ParallelSite, ResidualSite, SerialSite, Site, refuse_merge


class AdapterTuner(BaseTuner):
    """Injects the sites of a bottleneck method and the one `TaskAdapters` that serves them.

    A method subclasses it only to set the `prefix` of its parameters, by which PEFT tells methods apart.
    """

    prefix: ClassVar[str]
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: ClassVar[dict] = {}

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict) -> BottleneckConfig:
        return peft_config  # `target_modules=None` stays: it means every block of whatever encoder this is

    def _prepare_model(self, peft_config: BottleneckConfig, model: nn.Module) -> None:
        # All that can be wrong is found here, before the model is touched.
        self._sites = {site.name: site for site in choose_sites(model, peft_config)}
        self._check_fit(model, peft_config)
        if isinstance(model, MultiTaskDenseModel):
            check_decoders(model, peft_config)
            if not peft_config.inference_mode:  # else a saved adapter, which may come without decoders
                peft_config.modules_to_save = sorted({"decoders", *(peft_config.modules_to_save or [])})

    def _check_target_module_exists(self, peft_config: BottleneckConfig, key: str) -> bool | _ExcludedModule:
        if key in self._sites:
            return True
        excluded = replace(peft_config, target_modules=[], layers_to_transform=None)
        return check_target_module_exists(excluded, key)

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        adapters = getattr(self.model, SHARED, None)
        if adapters is None or adapter_name not in adapters.generators:
            adapters = self._add_generator(peft_config, adapter_name)
        site = self._sites[current_key]
        if not isinstance(target, AdapterSite):
            wrapped = site_class_of(site, peft_config.placement)(target, site, adapters)
            setattr(parent, target_name, wrapped)
            if isinstance(wrapped, ResidualSite):
                norm = self.model.get_submodule(site.norm)
                wrapped.residual_hook = norm.register_forward_pre_hook(wrapped.read_residual)

    def _check_fit(self, model: nn.Module, config: BottleneckConfig) -> None:
        """Raises ValueError where the adapters that `model` carries already do not go together with new ones."""
        adapters = getattr(model, SHARED, None)
        if adapters is not None and self.prefix + GENERATORS not in adapters.adapter_layer_names:
            raise ValueError(
                f"The model carries adapters of another method, and {config.method} adapters cannot join them: one "
                "model carries adapters of one method. Call `unload()` first, or adapt another copy of the model."
            )
        for site in self._sites.values():
            module, wanted = model.get_submodule(site.name), site_class_of(site, config.placement)
            if isinstance(module, AdapterSite) and type(module) is not wanted:
                raise ValueError(
                    f"'{site.name}' already carries adapters placed as {type(module).__name__}, and placement="
                    f"'{config.placement}' asks for {wanted.__name__}. Adapters of one model share a placement."
                )

    def _add_generator(self, config: BottleneckConfig, adapter_name: str) -> TaskAdapters:
        sites = list(self._sites.values())
        generator = config.make_generator(sites)
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        if not any(p.is_meta for p in generator.parameters()):
            generator.to(parameter.device, parameter.dtype)
        if not hasattr(self.model, SHARED):
            self.model.add_module(SHARED, TaskAdapters(self.prefix + GENERATORS))
            getattr(self.model, SHARED).attach(routed_module(self.model))
        adapters = getattr(self.model, SHARED)
        adapters.add(adapter_name, generator, Adapter(config.tasks, [site.name for site in sites], config.dropout))
        return adapters

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # PEFT's own expects a `weight`, which a feed-forward module has not

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # The name stands in the middle: task_adapters.<container>.<adapter name>.<parameter of the generator>
        container = f".{cls.prefix}{GENERATORS}."
        before, found, after = key.partition(f"{container}{adapter_name}.")
        if found:
            return before + container + after
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            refuse_merge()
        for module in self.model.modules():
            if isinstance(module, ResidualSite):
                module.residual_hook.remove()
        if hasattr(self.model, SHARED):  # else unloaded before
            getattr(self.model, SHARED).detach()
            delattr(self.model, SHARED)
        return super()._unload_and_optionally_merge(merge=False, **kwargs)


# Names of the TaskAdapters in the adapted model, and behind the method's prefix of its container. Both are part of
# every saved key; the first must not contain a method's prefix.
SHARED = "task_adapters"
GENERATORS = "generators"


def routed_module(model: nn.Module) -> nn.Module:
    """The module whose calls name tasks: the encoder of a dense model, else the model itself."""
    return next((module for module in model.modules() if isinstance(module, StageEncoder)), model)


def check_decoders(model: MultiTaskDenseModel, config: BottleneckConfig) -> None:
    """Raises ValueError where the model has a decoder for a task that the adapter does not know."""
    missing = [task for task in model.config.tasks if task not in config.tasks]
    if missing:
        raise ValueError(
            f"The adapter is for the tasks {config.tasks}, and the model has decoders for {model.config.tasks}: there "
            f"is no adapter for {missing}. Build the model with tasks of the adapter, or train an adapter for these."
        )


def site_class_of(site: Site, placement: str) -> type[AdapterSite]:
    """What an adapter at `site` reads under `placement`."""
    if placement == "serial":
        return SerialSite
    return ParallelSite if site.norm is None else ResidualSite


def choose_sites(model: nn.Module, config: BottleneckConfig) -> list[Site]:
    """The sites `config` asks for, in the order of the model.

    Raises:
        ValueError: The encoder is unknown and no `target_modules` are named; nothing matches; or a named module is no
            place for an adapter.
    """
    blocks = find_blocks(model)
    if config.target_modules is None:
        blocks = _choose_blocks(model, config, blocks)
        names = [getattr(block, sublayer).module for block in blocks for sublayer in config.sublayers]
        # The blocks by name, so that PEFT's own matching applies `exclude_modules` in one notation for all.
        config = replace(config, target_modules=names, layers_to_transform=None)
    known = {
        part.module: Site(part.module, block.width, index, part.stream)
        for index, block in enumerate(blocks)
        for part in (block.attention, block.feed_forward)
    }
    names = [
        name
        for name, _ in model.named_modules()
        if name and check_target_module_exists(config, name) and not _is_inside_adapter(model, name)
    ]
    if not names:
        raise ValueError(
            f"No module matches target_modules={config.target_modules} with exclude_modules={config.exclude_modules}. "
            f"Known blocks of {type(model).__name__}: {[block.feed_forward.module for block in blocks] or 'none'}."
        )
    return [
        # A module of no known block counts as a block of its own.
        known.get(name) or Site(name, width_of(model.get_submodule(name), name), len(blocks) + i)
        for i, name in enumerate(names)
    ]


def _choose_blocks(model: nn.Module, config: BottleneckConfig, blocks: list[Block]) -> list[Block]:
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no blocks of a known encoder family, so it is not known where adapters go. "
            "Name the modules in `target_modules`, e.g. the feed-forward modules of its blocks."
        )
    if config.layers_to_transform is None:
        return blocks
    if max(config.layers_to_transform) >= len(blocks):
        raise ValueError(
            f"`layers_to_transform` {config.layers_to_transform} reaches beyond the {len(blocks)} blocks of "
            f"{type(model).__name__}: indices run from 0 to {len(blocks) - 1}."
        )
    return [blocks[i] for i in sorted(set(config.layers_to_transform))]


def _is_inside_adapter(model: nn.Module, name: str) -> bool:
    parents = name.split(".")[:-1]
    paths = (".".join(parents[: i + 1]) for i in range(len(parents)))
    return any(isinstance(model.get_submodule(path), BaseTunerLayer) for path in paths)


def width_of(module: nn.Module, name: str) -> int:
    """Channels that `module` reads and writes on its last axis, from the linear layers it begins and ends with.

    Raises:
        ValueError: There are none, or they differ.
    """
    if isinstance(module, AdapterSite):
        return module.site.width
    linears = [layer for layer in module.modules() if hasattr(layer, "in_features")]
    if not linears or linears[0].in_features != linears[-1].out_features:
        found = f"{linears[0].in_features} to {linears[-1].out_features}" if linears else "no linear layer"
        raise ValueError(
            f"'{name}' ({type(module).__name__}, {found}) cannot carry an adapter, which reads and adds the same "
            "number of channels on the last axis. Name modules like a feed-forward block or a square linear layer."
        )
    return linears[0].in_features
