# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Puts adapters into a model: what the PEFT tuners of all methods share."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import pairwise
from re import Match
from typing import Any, ClassVar, Generic

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from torch import nn

from ..config import ConfigT, MultiTaskConfig
from ..models.blocks import Block, find_blocks
from ..models.multitask import MultiTaskDenseModel
from .generation import Adapter
from .provenance import check_base, describe_base, routed_module
from .routing import GENERATORS, SHARED, TaskAdapters
from .site import AdapterSite, Site, base_of
from .verbs import TaskSet


class AdapterTuner(TaskSet, BaseTuner, Generic[ConfigT]):
    """Injects the sites of a method and the one `TaskAdapters` that serves them.

    A family of methods says where its adapters sit (`known_sites`, `site_at`); a method sets the `prefix` of its
    parameters, by which PEFT tells methods apart.
    """

    prefix: str
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}  # type: ignore[misc]  # PEFT says no ClassVar

    @abstractmethod
    def known_sites(self, model: nn.Module, blocks: list[Block], config: ConfigT) -> Sequence[Site]:
        """Every site of an encoder of a known family, whose blocks are given."""

    @abstractmethod
    def site_at(self, module: nn.Module, name: str, index: int, config: ConfigT) -> Site:
        """The site at a module that `target_modules` names and that is none of the known ones.

        Args:
            module: The module.
            name: Its path in the model.
            index: Of the block it counts as, which is one of its own.
            config: The method's settings.

        Raises:
            ValueError: It is no place for an adapter of the method.
        """

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Iterator[None]:
        if adapter_names is not None:
            raise ValueError(
                f"`adapter_names` chooses an adapter per picture, which {type(self).__name__} cannot do. Choose one "
                "with `set_adapter`."
            )
        yield

    def _prepare_adapter_config(self, peft_config: ConfigT, model_config: dict[str, Any]) -> ConfigT:
        return peft_config  # `target_modules=None` stays: it means every block of whatever encoder this is

    def _prepare_model(self, peft_config: ConfigT, model: nn.Module) -> None:
        # All that can be wrong is found here, before the model is touched.
        sites = self._choose_sites(model, peft_config)
        self._sites = {site.name: site for site in sites}
        self._check_fit(model, peft_config)
        base = describe_base(model, sites)
        check_base(peft_config, base)
        if isinstance(model, MultiTaskDenseModel):
            train_decoders(model, peft_config)
        if peft_config.made_for not in (None, base) and not peft_config.is_of_checkpoint:
            # It has adapted another model, of which the record stays true; this one has a copy.
            *_, name = (name for name, config in self.peft_config.items() if config is peft_config)  # the newest
            peft_config = self.peft_config[name] = copy(peft_config)
        peft_config.made_for = base

    def _check_target_module_exists(self, peft_config: ConfigT, key: str) -> bool | Match[str] | None:
        if key in self._sites:
            return True
        return check_target_module_exists(aimed_at(peft_config, []), key)

    def _create_and_replace(
        self,
        peft_config: ConfigT,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        adapters = getattr(self.model, SHARED, None)
        if adapters is None or adapter_name not in adapters.generators:
            adapters = self._add_generator(self.peft_config[adapter_name], adapter_name)
        if not isinstance(target, AdapterSite):
            site = self._sites[current_key]
            wrapped = site.layer(target, site, adapters)
            setattr(parent, target_name, wrapped)
            wrapped.attach(self.model)

    def _choose_sites(self, model: nn.Module, config: ConfigT) -> list[Site]:
        """The sites `config` asks for, in the order of the model.

        Raises:
            ValueError: The encoder is unknown and no `target_modules` are named; nothing matches; or a named module
                is no place for an adapter.
        """
        asked, blocks = config, find_blocks(model)
        known = {site.name: site for site in self.known_sites(model, blocks, config)}
        if config.target_modules is None:
            check_blocks(model, config, blocks)
            layers = config.layers_to_transform
            names = [n for n, site in known.items() if not isinstance(layers, Sequence) or site.block in layers]
            # By name, so that PEFT's own matching applies `exclude_modules` in one notation for all.
            config = aimed_at(config, names)
        names = [
            name
            for name, _ in model.named_modules()
            if name and check_target_module_exists(config, name) and not _is_inside_adapter(model, name)
        ]
        for outer, name in pairwise(names):  # in the order of the model, so inner ones follow
            if name.startswith(f"{outer}."):
                raise ValueError(
                    f"`target_modules` matches '{name}' inside '{outer}', a match too. Name one of the two."
                )
        if not names:
            raise ValueError(
                f"No module matches target_modules={asked.target_modules} with exclude_modules="
                f"{asked.exclude_modules} and layers_to_transform={asked.layers_to_transform}. Known of "
                f"{type(model).__name__}: {list(known) or 'none'}."
            )
        return [
            known.get(name) or self._site_named(model, name, len(blocks) + i, config) for i, name in enumerate(names)
        ]

    def _site_named(self, model: nn.Module, name: str, index: int, config: ConfigT) -> Site:
        # It may be wrapped for an adapter that is there already; a misfit is found later.
        return self.site_at(base_of(model.get_submodule(name)), name, index, config)

    def _check_fit(self, model: nn.Module, config: MultiTaskConfig) -> None:
        """Raises ValueError where the adapters that `model` carries already do not go together with new ones."""
        adapters = getattr(model, SHARED, None)
        if adapters is not None and self.prefix + GENERATORS not in adapters.adapter_layer_names:
            raise ValueError(
                f"The model carries adapters of another method, and {config.method} adapters cannot join them: one "
                "model carries adapters of one method. Call `unload()` first, or adapt another copy of the model."
            )
        wrapped = [name for name, module in model.named_modules() if isinstance(module, AdapterSite)]
        for site in self._sites.values():
            module = model.get_submodule(site.name)
            nested = [name for name in wrapped if name.startswith(f"{site.name}.") or site.name.startswith(f"{name}.")]
            if nested and site.name not in wrapped:
                raise ValueError(
                    f"The new adapters ask for '{site.name}', and there are adapters of '{nested[0]}' already, one "
                    "within the other. Adapters of one model share their modules: name the same ones."
                )
            if isinstance(module, AdapterSite) and type(module) is not site.layer:
                raise ValueError(
                    f"'{site.name}' already carries adapters placed as {type(module).__name__}, and the new ones ask "
                    f"for {site.layer.__name__}. Adapters of one model share a placement."
                )

    def _add_generator(self, config: MultiTaskConfig, adapter_name: str) -> TaskAdapters:
        sites = list(self._sites.values())
        generator = config.make_generator(sites)
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        if not any(p.is_meta for p in generator.parameters()):
            generator.to(parameter.device, parameter.dtype)
        if not hasattr(self.model, SHARED):
            self.model.add_module(SHARED, TaskAdapters(self.prefix + GENERATORS, config.shares_pass))
            getattr(self.model, SHARED).attach(routed_module(self.model))
        adapters = getattr(self.model, SHARED)
        adapters.add(adapter_name, generator, Adapter(config, sites))
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
        for module in self.model.modules():
            if isinstance(module, AdapterSite):
                module.detach()
        if hasattr(self.model, SHARED):  # else unloaded before
            getattr(self.model, SHARED).detach()
            delattr(self.model, SHARED)
        return super()._unload_and_optionally_merge(merge=False, **kwargs)  # type: ignore[return-value]  # not None


def aimed_at(config: ConfigT, names: list[str]) -> ConfigT:
    """A config for PEFT's matching of module names; its own checks do not apply to it."""
    config = copy(config)
    config.target_modules, config.layers_to_transform = names, None
    return config


def train_decoders(model: MultiTaskDenseModel, config: MultiTaskConfig) -> None:
    """Makes the decoders part of the adapter.

    Raises:
        ValueError: The model has a decoder for a task that the adapter does not know.
    """
    missing = [task for task in model.config.tasks if task not in config.tasks]
    if missing:
        raise ValueError(
            f"The adapter is for the tasks {config.tasks}, and the model has decoders for {model.config.tasks}: there "
            f"is no adapter for {missing}. Build the model with tasks of the adapter, or train an adapter for these."
        )
    if not config.inference_mode:  # else a saved adapter, which may come without decoders
        config.modules_to_save = sorted({"decoders", *(config.modules_to_save or [])})


def check_blocks(model: nn.Module, config: MultiTaskConfig, blocks: list[Block]) -> None:
    """Raises ValueError where `target_modules=None` or `layers_to_transform` finds no blocks to count."""
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no blocks of a known encoder family, so it is not known where adapters go. "
            "Name the modules in `target_modules`, e.g. the feed-forward modules of its blocks."
        )
    layers = config.layers_to_transform
    if isinstance(layers, Sequence) and max(layers) >= len(blocks):
        raise ValueError(
            f"`layers_to_transform` {layers} reaches beyond the {len(blocks)} blocks of {type(model).__name__}: "
            f"indices run from 0 to {len(blocks) - 1}."
        )


def _is_inside_adapter(model: nn.Module, name: str) -> bool:
    parents = name.split(".")[:-1]
    paths = (".".join(parents[: i + 1]) for i in range(len(parents)))
    return any(isinstance(model.get_submodule(path), BaseTunerLayer) for path in paths)
