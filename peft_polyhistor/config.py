# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The settings that methods share."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from peft import PeftConfig, PeftType
from torch import nn

from .checks import check_positive, check_probability, check_record, check_truth
from .tasks import PASCAL_TASKS


@dataclass
class MultiTaskConfig(PeftConfig):
    """Settings of every method that adapts one frozen encoder to several tasks.

    Args:
        tasks: Names of the tasks, in the order of their embeddings. Any names that can be part of a parameter name.
        target_modules: Which modules carry an adapter. `None` takes every transformer block of a known encoder. Else
            names, or endings of names after a dot, or one regular expression that must match whole names.
        exclude_modules: Modules to leave out, in the same notation.
        layers_to_transform: Indices of the blocks to adapt, counted from 0 over all stages in the order of the
            encoder; `None` adapts all. Needs `target_modules=None`.
        modules_to_save: Further modules that train and are saved as a whole. The decoders of a
            `MultiTaskDenseModel` are among them without being named.
        init_weights: Start as an exact identity of the frozen encoder. `False` gives random weights, for tests.
        tasks_per_pass: Tasks that go through the encoder as one batch; a call runs as many batches as it takes, with
            the same results but for what is drawn at random (dropout). `None`: all at once on accelerators, on a
            CPU as many as are faster together. Without effect where one pass serves all tasks, and on models of
            unknown families, which run one task per pass: nothing tells which rows of their outputs are images. May be
            changed in a model's `peft_config` at any time.
        made_for: Encoder architecture and decoder settings of the adapted model; set automatically, in the model's
            copy of this config. `load` builds the model again from it, and another encoder raises.

    Raises:
        ValueError: A field is out of its range; the message says what is allowed.
        TypeError: A field has the wrong type.
    """

    method: ClassVar[str]  # the PEFT type, set by each method's config
    shares_pass: ClassVar[bool] = False  # one pass of the encoder serves all tasks
    dropout = 0.0  # a field where a method has one

    tasks: Sequence[str] = field(
        default=PASCAL_TASKS, metadata={"help": "Names of the tasks, in the order of their embeddings."}
    )
    target_modules: Sequence[str] | str | None = field(
        default=None, metadata={"help": "Modules to adapt; None: every block of a known encoder."}
    )
    exclude_modules: Sequence[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    layers_to_transform: Sequence[int] | int | None = field(
        default=None, metadata={"help": "Indices of the blocks to adapt, over all stages; None: all."}
    )
    modules_to_save: Sequence[str] | None = field(
        default=None, metadata={"help": "Further modules that train and are saved as a whole."}
    )
    init_weights: bool = field(default=True, metadata={"help": "Start as an exact identity of the frozen encoder."})
    tasks_per_pass: int | None = field(
        default=None,
        metadata={"help": "Tasks that go through the encoder as one batch; None: by device and picture size."},
    )
    made_for: dict[str, Any] | None = field(
        default=None, metadata={"help": "Recorded: encoder and decoders of the model it was made for."}
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
        if self.tasks_per_pass is not None:
            check_positive("tasks_per_pass", self.tasks_per_pass)
        for name in ("init_weights", "inference_mode"):
            check_truth(name, getattr(self, name))
        for name in ("base_model_name_or_path", "revision"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)):
                raise TypeError(f"`{name}` must be a text or None, got {value!r}.")
        check_record(self.made_for)

    @abstractmethod
    def make_generator(self, sites: list[Any]) -> nn.Module:
        """The module that makes the weights of every site and task: `(tasks,)` indices to one entry per site.

        Args:
            sites: The `Site`s that the method's tuner chose, of whatever kind it makes.
        """

    def _check_modules(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value = getattr(self, name)
            if value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                continue
            if name == "modules_to_save":
                raise TypeError(f"`{name}` must be a list of names, got {value!r}.")
            if not isinstance(value, str):
                raise TypeError(f"`{name}` must be a list of names or a regular expression, got {value!r}.")
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
    """Settings of the methods whose layer is a bottleneck adapter, up(gelu(down(norm(x)))).

    Args:
        reduction_factor: Width of a layer over its bottleneck.
        placement: `"parallel"` adds the adapter of the residual stream in front of the feed-forward block's norm to
            the block's output (the paper's). `"serial"` applies the adapter to the feed-forward block's output. The
            same goes for attention, where adapters sit there too. A module named in `target_modules` that is part of
            no known block has no such norm: there the parallel adapter reads the module's own input.
        sublayers: Where in a block of a known encoder adapters sit: `"feed_forward"`, `"attention"` or both. Without
            effect where `target_modules` names the modules.
        dropout: Probability of zeroing an activation of the bottleneck while training.
    """

    reduction_factor: int = field(default=16, metadata={"help": "Width of a layer over its bottleneck."})
    placement: str = field(default="parallel", metadata={"help": "'parallel' to the feed-forward block or 'serial'."})
    sublayers: Sequence[str] = field(
        default=("feed_forward",), metadata={"help": "Where adapters sit: 'feed_forward', 'attention' or both."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout probability in the bottleneck."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("reduction_factor", self.reduction_factor)
        is_list = isinstance(self.sublayers, Sequence) and not isinstance(self.sublayers, str)
        if not is_list or not self.sublayers or any(name not in SUBLAYERS for name in self.sublayers):
            raise ValueError(
                f"`sublayers` must be a list of one or both of {list(SUBLAYERS)}, got {self.sublayers!r}."
            )
        self.sublayers = list(dict.fromkeys(self.sublayers))
        if self.placement not in PLACEMENTS:
            raise ValueError(f"`placement` must be one of {list(PLACEMENTS)}, got {self.placement!r}.")
        check_probability("dropout", self.dropout)

    def bottleneck_of(self, width: int) -> int:
        """Bottleneck of a layer of this width, in channels.

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
    """Settings of the bottleneck methods whose weights are products of two factors.

    Args:
        rank: Rank of a weight; `None` takes `max(1, bottleneck // rank_divisor)`.
        rank_divisor: Bottleneck over rank where `rank` is not given.
    """

    rank: int | None = field(default=None, metadata={"help": "Rank of a weight; None: by rank_divisor."})
    rank_divisor: int = field(default=4, metadata={"help": "Bottleneck over rank where rank is not given."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("rank_divisor", self.rank_divisor)
        if self.rank is not None:
            check_positive("rank", self.rank)

    def rank_of(self, width: int) -> int:
        """Rank of the weights of a layer of this width; errors as in `bottleneck_of`."""
        bottleneck = self.bottleneck_of(width)
        return self.rank or max(1, bottleneck // self.rank_divisor)


SUBLAYERS = ("feed_forward", "attention")
PLACEMENTS = ("parallel", "serial")


def _check_names(tasks: Sequence[str]) -> list[str]:
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise TypeError(f"`tasks` must be a list of names, got {tasks!r}. For one task write e.g. tasks=['semseg'].")
    names = list(tasks)
    wrong = [name for name in names if not isinstance(name, str) or not re.fullmatch(r"\w+", name)]
    if not names or wrong or len(set(names)) < len(names):
        raise ValueError(
            f"`tasks` must be at least one name of letters, digits and underscores, each given once, got {names}."
        )
    return names
