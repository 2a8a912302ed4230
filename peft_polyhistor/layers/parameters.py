# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Trainable encoder parameters, per task or shared: their sites, layer and generator."""

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
from ..tuner.layer import AdapterLayer, Merged, base_layer_of
from ..tuner.site import Site


TURNS = threading.RLock()  # one thread at a time: a module shows its replaced parameters to all threads


@dataclass(frozen=True)
class ParameterSite(Site):
    """The site of a `ParameterLayer`."""

    shapes: dict[str, tuple[int, ...]]  # of each trainable parameter of the module, by name


class ParameterLayer(AdapterLayer):
    """Runs the module once per task, with the additions of the active adapters to some of its parameters.

    Weights of a site are a dictionary of additions `(tasks, *shape)` by parameter. Additions start at zero, sum up
    over adapters, and leave the frozen module to be shared by the tasks.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        additions = [weights for weights, _ in self.active_weights(first_tensor((args, kwargs)))]
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
    """Runs a block of code with `tensors` in place of parameters of `module`, by name.

    The tensors become plain attributes, which Python finds before the registered parameters. FSDP does the same in its
    forward pass, where `torch.func.functional_call` would have no effect.
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
    """Splits the arguments of a call by task: tensors with the batch on their first axis; others stay whole."""
    first = first_tensor(arguments)
    if parts == 1:
        return [arguments]
    if first is None:
        raise ValueError(
            "A module whose parameters differ by task is called without a tensor, so it has no batch to split by "
            "task. Name a module around it in `target_modules`."
        )
    return cut(arguments, [1] * parts, first.shape[0])


class ParameterAdditions(nn.ModuleList):
    """The generator of the additions of each site, which start at zero.

    Args:
        sets: Number of sets of additions: one per task, or one for all tasks.
        sites: The sites of the parameters.
        std: Standard deviation at the start; above 0 for tests.

    Parameters: sets * sum of the sizes of the sites' parameters.
    """

    def __init__(self, sets: int, sites: list[ParameterSite], std: float = 0.0):
        super().__init__(
            nn.ParameterList(nn.Parameter(std * torch.randn(sets, *shape)) for shape in site.shapes.values())
            for site in sites
        )
        self.names = [list(site.shapes) for site in sites]

    def forward(self, tasks: Tensor) -> list[dict[str, Tensor]]:
        """Maps indices `(tasks,)` to the additions of each site by parameter, `(tasks, *shape)`."""
        with onloaded(self):
            return [
                {name: values[tasks] for name, values in zip(names, parameters, strict=True)}  # type: ignore[call-overload]
                for names, parameters in zip(self.names, self, strict=True)
            ]


def parameter_sites(
    model: nn.Module, blocks: list[Block], trains: Callable[[str, nn.Module], bool]
) -> list[ParameterSite]:
    """Returns the sites of all trainable parameters of an encoder, in the order of the model.

    Attention is one site with all of its submodules, because a position table is called without a batch. Elsewhere the
    site is the module that owns the parameters.

    Args:
        model: The model.
        blocks: The transformer blocks of its encoder.
        trains: Tells from its own name and its owner whether a parameter trains.
    """
    attentions = [block.self_attention for block in blocks]
    modules = encoder_modules(model, blocks)
    wrapped = [name for name, module in modules if isinstance(module, AdapterLayer)]
    inside = tuple(f"{name}." for name in (*attentions, *wrapped))
    sites = []
    for name, module in modules:
        if name.startswith(inside):
            continue
        shapes = parameter_shapes(base_layer_of(module), trains, recurse=name in attentions)
        if name in wrapped and shapes.keys() != parameter_shapes(base_layer_of(module), trains, recurse=True).keys():
            raise ValueError(
                f"The new adapters ask for modules inside of '{name}', which carries adapters already, one within the "
                "other. Adapters of one model share their modules: name the same modules."
            )
        if shapes:
            sites.append(ParameterSite(name, ParameterLayer, last_axis(shapes), block_of(name, blocks), shapes))
    return sites


def parameter_shapes(
    module: nn.Module, trains: Callable[[str, nn.Module], bool], recurse: bool
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of trainable parameters of `module` by name, with `recurse` also of its submodules."""
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
    """Returns the index of the block around a module, or `None` if there is none."""
    return next((index for index, block in enumerate(blocks) if name.startswith(f"{block.name}.")), None)
