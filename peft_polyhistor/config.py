# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The configs that methods build on, and the docstring of a method's config."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from inspect import cleandoc, formatannotation
from textwrap import fill
from typing import Any, ClassVar, TypeVar

from peft import PeftConfig, PeftType
from torch import nn

from .checks import check_positive, check_probability, check_record, check_truth, find_repeated
from .tasks import PASCAL_TASKS


SUBLAYERS = ("feed_forward", "attention")
PLACEMENTS = ("parallel", "serial")


def setting(default: Any, text: str, check: Callable[[str, Any], None] | None = None) -> Any:
    """Defines a field of a config: its default, its documentation, and a check of values other than `None`."""
    return field(default=default, metadata={"help": text, "check": check})


def _metadata_of(config_class: type, name: str) -> Mapping[str, Any]:
    """Returns the metadata of a field, from a base class if `config_class` changes only the default."""
    inherited = (vars(cls).get("__dataclass_fields__", {}).get(name) for cls in config_class.__mro__)
    return next((item.metadata for item in inherited if item is not None and "help" in item.metadata), {})


@dataclass
class MultiTaskConfig(PeftConfig):
    """Base of the configs of all methods; `document` lists the fields in the docstring of each method's config."""

    method: ClassVar[str]  # the PEFT type, set by each method's config
    shares_pass: ClassVar[bool] = False  # one pass of the encoder serves all tasks
    dropout = 0.0  # a field in methods with dropout

    tasks: Sequence[str] = setting(
        PASCAL_TASKS,
        "Names of the tasks, in the order of their embeddings. Letters, digits and underscores are allowed.",
    )
    target_modules: Sequence[str] | str | None = setting(
        None,
        "The modules to adapt: a list of module names or of endings of names after a dot, or a regular expression "
        "that matches whole names. `None` adapts every transformer block of a known encoder.",
    )
    exclude_modules: Sequence[str] | str | None = setting(
        None, "The modules to leave out, in the notation of `target_modules`."
    )
    layers_to_transform: Sequence[int] | int | None = setting(
        None,
        "Indices of the transformer blocks to adapt, counted from 0 over all stages. `None` adapts all blocks. Needs "
        "`target_modules=None`.",
    )
    modules_to_save: Sequence[str] | None = setting(
        None,
        "Further modules that are trained and saved as a whole. The decoders of a `MultiTaskDenseModel` are always "
        "among them.",
    )
    init_weights: bool = setting(
        True,
        "Whether the adapted encoder starts out identical to the frozen encoder. `False` gives random weights, for "
        "tests.",
        check_truth,
    )
    tasks_per_pass: int | None = setting(
        None,
        "The largest number of tasks that run through the encoder as one batch; a call makes as many passes as it "
        "needs. The results are the same, except for dropout and stochastic depth. `None` runs all tasks at once on "
        "accelerators, and on CPUs as many as run faster together. No effect if one pass serves all tasks. An encoder "
        "of an unknown family outside of a dense model runs one task per pass. May be changed in `model.peft_config` "
        "at any time.",
        check_positive,
    )
    made_for: dict[str, Any] | None = setting(
        None,
        "Encoder and decoder settings of the adapted model. Set automatically in the model's own copy of the config. "
        "`load` rebuilds the model from it. Loading onto another architecture raises an error, and onto other weights "
        "of the same architecture, in general, gives a warning.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]  # PEFT's
        self.peft_type = PeftType[self.method]
        if self.task_type is not None:
            raise ValueError(
                f"`task_type` must be None, got '{self.task_type}': PEFT's task types wrap text models. Leave it out."
            )
        self.tasks = _check_names(self.tasks)
        # Lists, never sets or tuples: JSON gives lists back, and the order of a set is random.
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"):
            value = getattr(self, name)
            if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
                setattr(self, name, sorted(value) if isinstance(value, set | frozenset) else list(value))
        self._check_modules()
        if self.layers_to_transform is not None:
            self._check_layers()
        check_truth("inference_mode", self.inference_mode)
        for item in fields(self):
            check, value = _metadata_of(type(self), item.name).get("check"), getattr(self, item.name)
            if check is not None and (value is not None or item.default is not None):
                check(item.name, value)
        for name in ("base_model_name_or_path", "revision"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise TypeError(f"`{name}` must be a string or None, got {value!r}.")
        check_record(self.made_for)

    def make_generator(self, sites: list[Any]) -> nn.Module:
        """Builds the module that makes the weights of every site: task indices `(tasks,)` to one entry per site.

        Args:
            sites: The sites that the method's tuner chose, of the class that the tuner makes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `make_generator`.")

    def _check_modules(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value = getattr(self, name)
            if value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                continue
            if name == "modules_to_save":
                raise TypeError(f"`{name}` must be a list of names, got {value!r}.")
            if not isinstance(value, str):
                raise TypeError(f"`{name}` must be a list of names or a regular expression, got {value!r}.")
            if value == "all-linear":
                raise ValueError(
                    f"`{name}` must name modules, got 'all-linear'. None takes all blocks of the encoder."
                )
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(
                    f"`{name}` must be a list of names or a regular expression, got {value!r}: {error}."
                ) from error

    def _check_layers(self) -> None:
        given = self.layers_to_transform
        indices: list[Any] = given if isinstance(given, list) else [given]
        if not indices or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in indices):
            raise ValueError(f"`layers_to_transform` must hold block indices from 0, got {indices}.")
        self.layers_to_transform = indices
        if self.target_modules is not None:
            raise ValueError(
                "`layers_to_transform` counts the blocks of a known encoder and `target_modules` names modules: "
                "give one of them, not both."
            )


ConfigT = TypeVar("ConfigT", bound=MultiTaskConfig)


@dataclass
class BottleneckConfig(MultiTaskConfig):
    """Base of the configs whose layer is a bottleneck adapter, up(gelu(down(norm(x))))."""

    reduction_factor: int = setting(
        16,
        "Width of a layer divided by its bottleneck (rho in Polyhistor, Sec. 4.1), at least 1.",
        check_positive,
    )
    placement: str = setting(
        "parallel",
        'Either `"parallel"` (as in Polyhistor): the adapter reads the residual stream before the norm of the '
        'feed-forward block and is added to the output of the block. Or `"serial"`: the adapter is applied to the '
        "output of the feed-forward block. Adapters beside attention follow the same rule. If `target_modules` names "
        "a module outside of the known blocks, a parallel adapter reads the input of the module.",
    )
    sublayers: Sequence[str] = setting(
        ("feed_forward",),
        'The sublayers of a transformer block that carry adapters: `"feed_forward"`, `"attention"` or both. No effect '
        "with `target_modules`.",
    )
    dropout: float = setting(
        0.0, "Dropout probability of the activations in the bottleneck, in [0, 1).", check_probability
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        is_list = isinstance(self.sublayers, Sequence) and not isinstance(self.sublayers, str)
        if not is_list or not self.sublayers or any(name not in SUBLAYERS for name in self.sublayers):
            raise ValueError(
                f"`sublayers` must be a list of one or both of {list(SUBLAYERS)}, got {self.sublayers!r}."
            )
        self.sublayers = list(dict.fromkeys(self.sublayers))
        if self.placement not in PLACEMENTS:
            raise ValueError(f"`placement` must be one of {list(PLACEMENTS)}, got {self.placement!r}.")

    def bottleneck_of(self, width: int) -> int:
        """Returns the bottleneck of a layer of this width, in channels.

        Raises:
            ValueError: The reduction factor is larger than the width.
        """
        if self.reduction_factor > width:
            raise ValueError(
                f"`reduction_factor` {self.reduction_factor} leaves no bottleneck in a layer of width {width}: "
                f"choose one of at most {width}."
            )
        return width // self.reduction_factor


@dataclass
class LowRankConfig(BottleneckConfig):
    """Base of the configs of bottleneck methods whose weights are products of two factors."""

    rank: int | None = setting(
        None,
        "Rank of each adapter weight (Polyhistor, Sec. 4.1). `None` takes `max(1, bottleneck // rank_divisor)`.",
        check_positive,
    )
    rank_divisor: int = setting(
        4, "Bottleneck divided by rank, at least 1. Takes effect if `rank` is `None`.", check_positive
    )

    def rank_of(self, width: int) -> int:
        """Returns the rank of the weights of a layer of this width; raises the errors of `bottleneck_of`."""
        bottleneck = self.bottleneck_of(width)
        return self.rank or max(1, bottleneck // self.rank_divisor)


def document(config_class: type[MultiTaskConfig]) -> str:
    """Returns the docstring of a config, with every field of the class and its bases listed under `Args:`."""
    text = [cleandoc(config_class.__doc__ or ""), "", "Args:"]
    inherited = {item.name for item in fields(PeftConfig)}
    for item in (item for item in fields(config_class) if item.name not in inherited):
        kind = re.sub(r"\b(collections\.abc|typing)\.", "", formatannotation(item.type))
        default = list(item.default) if isinstance(item.default, tuple) else item.default
        meaning = _metadata_of(config_class, item.name).get("help", "")
        text.append(f"    {item.name} (`{kind}`, *optional*, defaults to `{default!r}`):")
        text.append(fill(meaning, 112, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False))
    text += ["", "Raises:", "    ValueError: A field is out of its range; the message says which values are allowed."]
    return "\n".join([*text, "    TypeError: A field has the wrong type."])


def _check_names(tasks: Sequence[str]) -> list[str]:
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise TypeError(f"`tasks` must be a list of names, got {tasks!r}. For one task write e.g. tasks=['semseg'].")
    names = list(tasks)
    wrong = [name for name in names if not isinstance(name, str) or not re.fullmatch(r"\w+", name)]
    fault = "no task" if not names else f"{wrong} with other characters" if wrong else ""
    if not fault and (again := find_repeated(names)):
        fault = f"{again} more than once"
    if fault:
        raise ValueError(
            f"`tasks` must be at least one name of letters, digits and underscores, each given once, got {names}: "
            f"{fault}."
        )
    return names
