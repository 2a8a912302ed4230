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
from .layer import AdapterLayer, base_of
from .provenance import check_base, describe_base, routed_module
from .router import GENERATORS, SHARED, Router
from .site import Site
from .verbs import TaskVerbs
from .weights import AdapterRecord


class AdapterTuner(TaskVerbs, BaseTuner, Generic[ConfigT]):
    """Injects the layers of a method and the one `Router` that serves them.

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
            index: Index of the block that it counts as, a further one behind those of the encoder.
            config: The method's settings.

        Raises:
            ValueError: The module cannot carry an adapter of the method.
        """

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Iterator[None]:
        if adapter_names is not None:
            raise ValueError(
                f"`adapter_names` chooses an adapter per image, which {type(self).__name__} cannot do. Choose one "
                "with `set_adapter`."
            )
        yield

    def _prepare_adapter_config(self, peft_config: ConfigT, model_config: dict[str, Any]) -> ConfigT:
        # A copy: what is recorded of this model must not be written into a config that adapts another one too.
        # Its `target_modules=None` stays: it means every block of whatever encoder this is.
        *_, name = (name for name, config in self.peft_config.items() if config is peft_config)  # the newest
        prepared = self.peft_config[name] = copy(peft_config)
        return prepared

    def _prepare_model(self, peft_config: ConfigT, model: nn.Module) -> None:
        # All that can be wrong is found here, before the model is touched.
        sites = self._choose_sites(model, peft_config)
        self._sites = {site.name: site for site in sites}
        self._check_fit(model, peft_config)
        base = describe_base(model, sites)
        check_base(peft_config, base)
        if isinstance(model, MultiTaskDenseModel):
            train_decoders(model, peft_config)
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
        router = self.router or self._add_router(peft_config)
        record = router.records.get(adapter_name)
        if record is None or record.config is not peft_config:  # as LoRA, anew where the name was there before
            record = AdapterRecord(peft_config, list(self._sites.values()))
            router.add(adapter_name, self._make_generator(record), record)
        if not isinstance(target, AdapterLayer):
            site = self._sites[current_key]
            wrapped = site.layer(target, site, router)
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
        router = self.router
        if router is not None and self.prefix + GENERATORS not in router.adapter_layer_names:
            raise ValueError(
                f"The model carries adapters of another method, and {config.method} adapters cannot join them: one "
                "model carries adapters of one method. Call `unload()` first, or adapt another copy of the model."
            )
        layers = {name: module for name, module in model.named_modules() if isinstance(module, AdapterLayer)}
        foreign = [name for name, layer in layers.items() if layer.router is not router]
        if foreign:
            raise ValueError(
                f"'{foreign[0]}' carries adapters of another model, which shares this encoder. Call `unload()` on "
                "that model first, or build this one around another copy of the encoder."
            )
        for site in self._sites.values():
            nested = [name for name in layers if name.startswith(f"{site.name}.") or site.name.startswith(f"{name}.")]
            if nested and site.name not in layers:
                raise ValueError(
                    f"The new adapters ask for '{site.name}', and there are adapters of '{nested[0]}' already, one "
                    "within the other. Adapters of one model share their modules: name the same ones."
                )
            if site.name in layers and type(layers[site.name]) is not site.layer:
                raise ValueError(
                    f"'{site.name}' already carries adapters placed as {type(layers[site.name]).__name__}, and the "
                    f"new ones ask for {site.layer.__name__}. Adapters of one model share a placement."
                )

    def _add_router(self, config: MultiTaskConfig) -> Router:
        router = Router(self.prefix + GENERATORS, config.shares_pass)
        self.model.add_module(SHARED, router)
        router.attach(routed_module(self.model))
        return router

    def _make_generator(self, record: AdapterRecord) -> nn.Module:
        generator = record.config.make_generator(record.sites)
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        if not any(p.is_meta for p in generator.parameters()):
            generator.to(parameter.device, parameter.dtype)
        return generator

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
            if isinstance(module, AdapterLayer):
                module.detach()
        if self.router is not None:  # else unloaded before
            self.router.detach()
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
