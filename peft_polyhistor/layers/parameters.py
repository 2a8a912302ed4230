# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Parameters of the encoder itself that train, per task or once for all: sites, layer and generator."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..models.blocks import Block, encoder_modules
from ..models.onload import onloaded
from ..tuner.batches import Arguments, cut, first_tensor, join
from ..tuner.layer import AdapterLayer, Merged, base_of
from ..tuner.site import Site


TURNS = threading.RLock()  # threads take turns: they would see each other's parameters in the module


@dataclass(frozen=True)
class ParameterSite(Site):
    """The site of a `ParameterLayer`.

    Args:
        shapes: Shape of each parameter of the module that trains, by name in the module.
    """

    shapes: dict[str, tuple[int, ...]]


class ParameterLayer(AdapterLayer):
    """Runs the module once per task, with what the active adapters add to some of its parameters.

    Weights of a site are a dictionary of additions `(tasks, *shape)` by parameter. Kept apart from the frozen
    parameters, they start at zero, add up over adapters, and several tasks share one frozen module.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        additions = [weights for weights, _ in self.active_weights()]
        if not additions:
            return self.base_layer(*args, **kwargs)
        tasks = len(next(iter(additions[0].values())))
        outputs = []
        with nullcontext() if torch.compiler.is_compiling() else TURNS:
            for task, (args_of_task, kwargs_of_task) in enumerate(split_call((args, kwargs), tasks)):
                with replaced(self.base_layer, self._parameters_of(additions, task)):
                    outputs.append(self.base_layer(*args_of_task, **kwargs_of_task))
        return join(outputs)

    def merged_parameters(self, weights: list[tuple[Any, float]], merged: Mapping[Tensor, Tensor]) -> Merged:
        values = self._parameters_of([additions for additions, _ in weights], 0)
        return {self.base_layer.get_parameter(name): value for name, value in values.items()}

    def _parameters_of(self, additions: list[dict[str, Tensor]], task: int) -> dict[str, Tensor]:
        with onloaded(self.base_layer):
            parameters = {name: attrgetter(name)(self.base_layer) for addition in additions for name in addition}
            for addition in additions:
                for name, values in addition.items():
                    parameters[name] = parameters[name] + values[task].to(parameters[name])
        return parameters


@contextmanager
def replaced(module: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Runs a block of code with other tensors in place of parameters of `module`, by name.

    They become plain attributes, which Python finds before PyTorch looks for parameters, and which FSDP uses in a
    forward pass itself: `torch.func.functional_call` would exchange what stands behind those.
    """
    places = [(vars(module.get_submodule(path)), own) for path, _, own in (name.rpartition(".") for name in tensors)]
    before = [{own: attributes[own]} if own in attributes else {} for attributes, own in places]
    for (attributes, own), tensor in zip(places, tensors.values(), strict=True):
        attributes[own] = tensor
    try:
        yield
    finally:
        for (attributes, own), earlier in zip(places, before, strict=True):
            del attributes[own]
            attributes.update(earlier)


def split_call(arguments: Arguments, parts: int) -> list[Arguments]:
    """Arguments of a module's call for each task: what has the batch on its first axis is cut, the rest is whole."""
    first = first_tensor(arguments)
    if parts == 1:
        return [arguments]
    if first is None:
        raise ValueError(
            "A module whose parameters differ by task is called without a tensor, so there is no batch to lay out by "
            "task. Name a module around it in `target_modules`."
        )
    return cut(arguments, [1] * parts, first.shape[0])


class ParameterAdditions(nn.ModuleList):
    """Generator of the additions of every site, zero at the start; the same ones for all tasks where they are shared.

    Args:
        sets: Number of sets of additions: one per task, or one for all.
        sites: The sites of the parameters.
        std: Standard deviation of the start, for tests.

    Parameters: sets * sum of the sizes of the sites' parameters.
    """

    def __init__(self, sets: int, sites: list[ParameterSite], std: float = 0.0):
        super().__init__(
            nn.ParameterList(nn.Parameter(std * torch.randn(sets, *shape)) for shape in site.shapes.values())
            for site in sites
        )
        self.names = [list(site.shapes) for site in sites]

    def forward(self, tasks: Tensor) -> list[dict[str, Tensor]]:
        """Indices `(tasks,)` to the additions of every site by parameter, each `(tasks, *shape)`."""
        with onloaded(self):
            return [
                {name: values[tasks] for name, values in zip(names, parameters, strict=True)}  # type: ignore[call-overload]
                for names, parameters in zip(self.names, self, strict=True)
            ]


def parameter_sites(
    model: nn.Module, blocks: list[Block], trains: Callable[[str, nn.Module], bool]
) -> list[ParameterSite]:
    """The modules of an encoder that have parameters which train, in the order of the model.

    Attention is one site with all that is in it, since a position table is called without a batch; everywhere else the
    site is the module that owns the parameters.

    Args:
        model: The model.
        blocks: The blocks of its encoder.
        trains: Whether a parameter trains, by its own name and its owner.
    """
    attentions = [block.self_attention for block in blocks]
    modules = encoder_modules(model, blocks)
    wrapped = [name for name, module in modules if isinstance(module, AdapterLayer)]
    inside = tuple(f"{name}." for name in (*attentions, *wrapped))
    sites = []
    for name, module in modules:
        if name.startswith(inside):
            continue
        shapes = parameter_shapes(base_of(module), trains, recurse=name in attentions)
        if name in wrapped and shapes.keys() != parameter_shapes(base_of(module), trains, recurse=True).keys():
            raise ValueError(
                f"The new adapters ask for modules within '{name}', which carries adapters already, one within the "
                "other. Adapters of one model share their modules: name the same ones."
            )
        if shapes:
            sites.append(ParameterSite(name, ParameterLayer, last_axis(shapes), block_of(name, blocks), shapes))
    return sites


def parameter_shapes(
    module: nn.Module, trains: Callable[[str, nn.Module], bool], recurse: bool
) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of `module` that train, by name in it; with `recurse` those of its submodules too."""
    owners = module.named_modules() if recurse else [("", module)]
    return {
        f"{path}.{name}" if path else name: tuple(parameter.shape)
        for path, owner in owners
        for name, parameter in owner.named_parameters(recurse=False)
        if trains(name, owner)
    }


def last_axis(shapes: dict[str, tuple[int, ...]]) -> int:
    return next(iter(shapes.values()))[-1]


def block_of(name: str, blocks: list[Block]) -> int | None:
    """Index of the block that a module is part of; `None` outside of all."""
    return next((index for index, block in enumerate(blocks) if name.startswith(f"{block.name}.")), None)
