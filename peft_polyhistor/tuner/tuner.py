# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The base of the PEFT tuners of all methods, which injects adapters into a model."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from re import Match
from typing import Any, ClassVar, Generic

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from torch import nn

from ..config import ConfigT, MultiTaskConfig
from ..models.blocks import Block, find_blocks
from ..models.encoder import embedded_name
from ..models.multitask import MultiTaskDenseModel
from ..models.multitask_config import IMAGES
from ..models.onload import home_of
from .layer import AdapterLayer, base_layer_of
from .matching import aimed_at, check_fit, check_names, check_saved, find_saved, match_modules
from .provenance import check_base, describe_base, keep_sizes, routed_module
from .router import GENERATORS, SHARED, Router
from .site import Site
from .verbs import TaskVerbs
from .weights import AdapterRecord


class AdapterTuner(TaskVerbs, BaseTuner, Generic[ConfigT]):
    """Injects the layers of a method and the one `Router` that serves them.

    A family of methods defines the places of its adapters (`known_sites`, `site_at`). A method sets the `prefix` of
    its parameters, by which PEFT tells methods apart.
    """

    prefix: str
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}  # type: ignore[misc]  # PEFT says no ClassVar

    @abstractmethod
    def known_sites(self, model: nn.Module, blocks: list[Block], config: ConfigT) -> Sequence[Site]:
        """Returns all sites of an encoder with these blocks; empty for an unknown family, which has no blocks."""

    @abstractmethod
    def site_at(self, module: nn.Module, name: str, index: int, config: ConfigT) -> Site:
        """Returns the site at a module that `target_modules` names and that is not among the known sites.

        Args:
            module: The module.
            name: Path of the module in the model.
            index: Index of the block that the module counts as, after the blocks of the encoder.
            config: Config of the adapter.

        Raises:
            ValueError: The module cannot carry an adapter of the method.
        """

    def inject_adapter(self, *args: Any, state_dict: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Injects an adapter as in PEFT; the config alone selects modules, as the keys of a state name none."""
        super().inject_adapter(*args, **kwargs)

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
        # A deep copy, because the config may adapt another model too: neither the record of this model nor a change
        # of a list may pass from one model to the other.
        # `target_modules=None` stays, as it means all blocks of any encoder.
        *_, name = (name for name, config in self.peft_config.items() if config is peft_config)  # the newest adapter
        if name in ("", "decoders") or "." in name or hasattr(nn.ModuleDict(), name):
            raise ValueError(
                f"An adapter cannot be named {name!r}: modules are named after it. The name must not be empty, have a "
                "dot, or be 'decoders' or an attribute of PyTorch's modules. Use e.g. 'default'."
            )
        prepared = self.peft_config[name] = deepcopy(peft_config)
        if not prepared.revision and prepared.base_model_name_or_path == vars(self.model).get("name_or_path"):
            prepared.revision = getattr(routed_module(self.model), "revision", None)
        return prepared

    def _prepare_model(self, peft_config: ConfigT, model: nn.Module) -> None:
        # All checks run here, before the model is changed.
        sites = self._choose_sites(model, peft_config)
        check_saved(model, peft_config, sites)
        self._sites = {site.name: site for site in sites}
        check_fit(model, self.router, sites, self.prefix + GENERATORS)
        base = describe_base(model, sites)
        check_base(peft_config, base)
        if embedded_name(vars(model).get("name_or_path")):  # PEFT would record a folder inside this package
            vars(model)["name_or_path"] = ""
        if embedded_name(peft_config.base_model_name_or_path):
            peft_config.base_model_name_or_path = None
        if isinstance(model, MultiTaskDenseModel):
            train_decoders(model, peft_config)
        elif not peft_config.inference_mode:
            check_nested(model, peft_config)
        for name, module in find_saved(model, peft_config).items():
            keys = getattr(module, "original_module", module).state_dict()  # earlier adapters have copies of it
            check_names(self.peft_config, [f"base_model.model.{name}.modules_to_save.{key}" for key in keys])
        peft_config.made_for = keep_sizes(base, peft_config, peft_config.inference_mode)

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
        router = self.router
        if router is None or not router.has_adapter(adapter_name, peft_config):
            router = self._add_adapter(adapter_name, peft_config)
        if not isinstance(target, AdapterLayer):
            site = self._sites[current_key]
            wrapped = site.layer(target, site, router)
            setattr(parent, target_name, wrapped)
            wrapped.attach(self.model)

    def _choose_sites(self, model: nn.Module, config: ConfigT) -> list[Site]:
        """Returns the sites that `config` selects, in the order of the model; raises the errors of `match_modules`."""
        blocks = find_blocks(model)
        known = {site.name: site for site in self.known_sites(model, blocks, config)}
        names = match_modules(model, config, list(known.values()), len(blocks))
        # A module may carry adapters already; `check_fit` compares them with the new ones.
        return [
            known.get(name) or self.site_at(base_layer_of(model.get_submodule(name)), name, len(blocks) + i, config)
            for i, name in enumerate(names)
        ]

    def _add_adapter(self, adapter_name: str, config: MultiTaskConfig) -> Router:
        sites = list(self._sites.values())
        generator = config.make_generator(sites)
        if not any(p.is_meta for p in generator.parameters()):
            generator.to(*home_of(self.model))
        router = self.router
        generators = [generator, *(router.generators.values() if router else ())]
        keys = [key for made in generators for key in made.state_dict()]
        check_names(self.peft_config, [f"base_model.model.{SHARED}.{self.prefix}{GENERATORS}.{key}" for key in keys])
        if router is None:  # only now, so that a failed generator leaves the model unchanged
            router = Router(self.prefix + GENERATORS, config.shares_pass)
            self.model.add_module(SHARED, router)
            router.attach(routed_module(self.model))
        router.add(adapter_name, generator, AdapterRecord(config, sites))
        return router

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # PEFT's method expects a `weight`, which a feed-forward module lacks

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # The name is in the middle: task_adapters.<container>.<adapter name>.<parameter of the generator>. Keys of
        # decoders hold none here, and PEFT's method would cut those that end in a part such as "weight" or "0".
        container = f".{cls.prefix}{GENERATORS}."
        return key.replace(f"{container}{adapter_name}.", container)

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, *, state_dict: dict[str, Any], model: nn.Module, **kwargs: Any) -> Any:
        weights = super()._remap_adapter_state_dict_for_load(state_dict=state_dict, model=model, **kwargs)
        for name, _ in model.named_buffers():
            weight = weights.get(f"{name.removesuffix('gain')}weight") if name.endswith(".gain") else None
            if weight is not None:  # a `PacedLinear` that was saved without its gain had none
                weights.setdefault(name, weight.new_ones(()))
        return weights

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        for module in self.model.modules():
            if isinstance(module, AdapterLayer):
                module.detach()
        if self.router is not None:  # otherwise the model was unloaded before
            self.router.detach()
            delattr(self.model, SHARED)
        model: Any = super()._unload_and_optionally_merge(merge=False, **kwargs)
        if isinstance(model, MultiTaskDenseModel):
            hand_over(model, [self.peft_config[name] for name in self.active_adapters])
        return model


def hand_over(model: MultiTaskDenseModel, configs: Sequence[MultiTaskConfig]) -> None:
    """Records in a model how its decoders were trained, which it took over from the adapters of `configs`."""
    for config in configs:
        decoders = (config.made_for or {}).get("decoders")
        if decoders is not None:
            weights = decoders["loss_weights"]
            model.config.loss_weights = {task: weights[task] for task in model.config.tasks if task in weights}
            for name in IMAGES:
                if decoders.get(name) is not None:
                    setattr(model.config, name, decoders[name])


def train_decoders(model: MultiTaskDenseModel, config: MultiTaskConfig) -> None:
    """Makes the decoders part of the adapter.

    Raises:
        ValueError: The model has a decoder for a task that the adapter does not have, or `modules_to_save` names a
            module inside of the decoders.
    """
    missing = [task for task in model.config.tasks if task not in config.tasks]
    if missing:
        raise ValueError(
            f"The adapter is for the tasks {config.tasks}, and the model has decoders for {model.config.tasks}: there "
            f"is no adapter for {missing}. Build the model with tasks of the adapter, or adapt it for {missing} too."
        )
    if not config.inference_mode:  # a saved adapter may come without decoders
        inside = [name for name in find_saved(model, config) if name.startswith("decoders.")]
        if inside:
            raise ValueError(
                f"`modules_to_save` {config.modules_to_save} names '{inside[0]}', and the decoders are trained and "
                "saved as a whole. Leave it out; other modules can be named by a longer ending."
            )
        config.modules_to_save = sorted({"decoders", *(config.modules_to_save or [])})


def check_nested(model: nn.Module, config: MultiTaskConfig) -> None:
    """Raises ValueError if a dense model is inside of `model` and its decoders would stay frozen."""
    saved = find_saved(model, config)
    for name, module in model.named_modules():
        if isinstance(module, MultiTaskDenseModel) and f"{name}.decoders" not in saved:
            raise ValueError(
                f"The decoders of '{name}', a MultiTaskDenseModel inside of a {type(model).__name__}, would stay "
                f"frozen and would not be saved. Adapt the dense model itself by `get_peft_model({name}, ...)`, or "
                "name its 'decoders' in `modules_to_save`."
            )
