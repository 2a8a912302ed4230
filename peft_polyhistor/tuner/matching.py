# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Selects the modules that carry adapters, and checks new adapters against existing ones."""

from collections.abc import Iterable, Sequence
from copy import copy
from itertools import pairwise

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn

from ..config import ConfigT, MultiTaskConfig
from .layer import AdapterLayer
from .router import Router
from .site import Site


def match_modules(model: nn.Module, config: MultiTaskConfig, known: Sequence[Site], blocks: int) -> list[str]:
    """Returns the names of the modules that `config` selects, in the order of the model.

    `known` holds all sites of an encoder of a known family, which has `blocks` transformer blocks.

    Raises:
        ValueError: The encoder is unknown and `target_modules` is `None`; no module matches; or one match is inside
            another.
    """
    asked = config
    if config.target_modules is None:
        check_blocks(model, config, blocks)
        layers = config.layers_to_transform
        names = [site.name for site in known if not isinstance(layers, Sequence) or site.block in layers]
        # By name, so that PEFT's matching applies `exclude_modules` in the same notation.
        config = aimed_at(config, names)
    names = [
        name
        for name, _ in model.named_modules()
        if name and check_target_module_exists(config, name) and not _is_inside_adapter(model, name)
    ]
    for outer, name in pairwise(names):  # in the order of the model, so inner modules follow
        if name.startswith(f"{outer}."):
            raise ValueError(f"`target_modules` matches '{outer}' and '{name}' inside it. Name only one of the two.")
    if not names:
        raise ValueError(
            f"No module matches target_modules={asked.target_modules} with exclude_modules={asked.exclude_modules}, "
            f"modules_to_save={asked.modules_to_save} (which carry no adapters) and "
            f"layers_to_transform={asked.layers_to_transform}. Known of {type(model).__name__}: "
            f"{[site.name for site in known] or 'none'}."
        )
    return names


def find_saved(model: nn.Module, config: MultiTaskConfig) -> dict[str, nn.Module]:
    """Returns the modules that `modules_to_save` names, by their own name."""
    entries = tuple(config.modules_to_save or ())
    return {name: module for name, module in model.named_modules() if name and name.endswith(entries)}


def check_names(names: Iterable[str], keys: Iterable[str], owner: str = "An adapter") -> None:
    """Raises ValueError if an adapter has the name of a part of a key in the state of the model.

    PEFT takes such a part for the name of the adapter: it drops the key from the files of all other adapters, and
    removes the part from the key in the file of this one.

    Args:
        names: Names of the adapters.
        keys: Keys of the weights that adapters save, without the names of the adapters.
        owner: Subject of the sentence of the error.
    """
    parts = {part for key in keys for part in key.split(".")}
    for name in names:
        if name in parts:
            raise ValueError(
                f"{owner} cannot be named {name!r}, a part of the keys of saved weights: PEFT would lose weights. "
                "Choose a name that is no number, and that no layer, parameter or other task has."
            )


def check_saved(model: nn.Module, config: MultiTaskConfig, sites: Sequence[Site]) -> None:
    """Raises ValueError if `modules_to_save` names a module in a site, or the norm that an adapter reads.

    There are no sites in a module to save: PEFT leaves them out.
    """
    saved = find_saved(model, config)
    for site in sites:
        for place in {site.name, getattr(site, "stream", site.name)}:
            for name in saved:
                if place == name or place.startswith(f"{name}.") or name.startswith(f"{place}."):
                    raise ValueError(
                        f"`modules_to_save` names '{name}', and the adapter at '{site.name}' needs '{place}' as it "
                        "is. Name other modules, or leave those of the adapter out with `exclude_modules`."
                    )


def aimed_at(config: ConfigT, names: list[str]) -> ConfigT:
    """Returns a copy of `config` with other `target_modules`, for PEFT's matching of names; it is not checked."""
    config = copy(config)
    config.target_modules, config.layers_to_transform = names, None
    return config


def check_blocks(model: nn.Module, config: MultiTaskConfig, blocks: int) -> None:
    """Raises ValueError if `target_modules=None` or `layers_to_transform` asks for blocks that do not exist."""
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no blocks of a known encoder family, so the places of adapters are unknown. "
            "Name the modules in `target_modules`, e.g. the feed-forward modules of its blocks."
        )
    layers = config.layers_to_transform
    if isinstance(layers, Sequence) and max(layers) >= blocks:
        raise ValueError(
            f"`layers_to_transform` {layers} reaches beyond the {blocks} blocks of {type(model).__name__}: indices "
            f"run from 0 to {blocks - 1}."
        )


def check_fit(model: nn.Module, router: Router | None, sites: Sequence[Site], container: str) -> None:
    """Raises ValueError if `model` carries adapters that new adapters at `sites` cannot be combined with.

    `container` is the name of the dictionary of generators of their method.
    """
    if router is not None and container not in router.adapter_layer_names:
        raise ValueError(
            "The model carries adapters of another method, and one model carries adapters of one method. Call "
            "`unload()` first, or adapt another copy of the model."
        )
    tuned = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    layers = {name: module for name, module in tuned.items() if isinstance(module, AdapterLayer)}
    for name, module in tuned.items():
        if not isinstance(module, AdapterLayer | Router):
            raise ValueError(
                f"'{name}' carries an adapter of PEFT's own methods ({type(module).__name__}), which would be missing "
                "where the new adapters are saved or merged. Call `merge_and_unload()` or `unload()` on its model "
                "first, or adapt another copy of the encoder."
            )
    foreign = [name for name, layer in layers.items() if layer.router is not router]
    if foreign:
        raise ValueError(
            f"'{foreign[0]}' carries adapters of another model, which shares this encoder. Call `unload()` on that "
            "model first, or build this one around another copy of the encoder."
        )
    for site in sites:
        nested = [name for name in layers if name.startswith(f"{site.name}.") or site.name.startswith(f"{name}.")]
        if nested and site.name not in layers:
            raise ValueError(
                f"The new adapters ask for '{site.name}', and '{nested[0]}' carries adapters already, one within the "
                "other. Adapters of one model share their modules: name the same modules."
            )
        if site.name in layers and type(layers[site.name]) is not site.layer:
            raise ValueError(
                f"'{site.name}' already carries adapters placed as {type(layers[site.name]).__name__}, and the new "
                f"ones ask for {site.layer.__name__}. Adapters of one model share a placement."
            )


def _is_inside_adapter(model: nn.Module, name: str) -> bool:
    parents = name.split(".")[:-1]
    paths = (".".join(parents[: i + 1]) for i in range(len(parents)))
    return any(isinstance(model.get_submodule(path), BaseTunerLayer) for path in paths)
