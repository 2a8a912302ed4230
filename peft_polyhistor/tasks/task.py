# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The base of all rows of the table of tasks: settings as plain data, and the methods that a kind of tasks has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from ..checks import check_number
from .running_metric import RunningMetric


if TYPE_CHECKING:
    from ..data.geometry import Geometry


UNLABELED = (224, 224, 192)  # the colour of unlabeled contours in VOC's own pictures
HIGHLIGHT = (230, 60, 40)
MODES = "L", "P"  # of pictures of 8 bits whose values are numbers: the indices of a palette picture, not its colours

Ends = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A dense task; its subclasses are the kinds of tasks.

    A label passes through four forms: as stored, a picture; as a target, a tensor; as a prediction, which has the
    form of a target; and painted, `(height, width, 3)` uint8. Two targets of one batch have the same size.

    Args:
        name: Key of its predictions and labels; a Python identifier, as modules are named after it.
        loss_weight: Weight of the task in the summed loss.
        tag: What people search for on the Hub, where it is not the name.

    Raises:
        ValueError: For a setting that cannot be used.
    """

    name: str = field(kw_only=False)
    loss_weight: float = 1.0
    tag: str = ""

    kind: ClassVar[str]  # the name of the subclass in plain data

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _freeze(getattr(self, item.name)))
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"The name of a task must be a Python identifier, got {self.name!r}. Use e.g. 'depth'.")
        self._check_settings()

    def _check_settings(self) -> None:
        """Raises ValueError for a setting that cannot be used."""
        check_number("loss_weight", self.loss_weight)
        if self.loss_weight <= 0:
            raise ValueError(f"`loss_weight` of task '{self.name}' must be positive, got {self.loss_weight}.")

    def _check_choice(self, setting: str, allowed: Sequence[str]) -> None:
        value = getattr(self, setting)
        if value not in allowed:
            raise ValueError(f"`{setting}` of task '{self.name}' must be one of {list(allowed)}, got {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data: its kind, and the settings that are not the default; `make_task` reads it."""
        settings = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "name"}
        defaults = {item.name: item.default for item in fields(self) if item.default is not MISSING}
        own = {name: _thaw(value) for name, value in settings.items() if defaults.get(name, MISSING) != value}
        return {"kind": self.kind} | own

    # Scores

    @property
    def channels(self) -> int:
        """Output channels of its decoder."""
        return 1

    @property
    def score(self) -> str:
        """Key of `metric().compute()` that stands for the task."""
        raise NotImplementedError

    @property
    def higher_is_better(self) -> bool:
        """Direction of the headline score."""
        return True

    @property
    def unit(self) -> str:
        """Unit of the headline score."""
        return "percent"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, if the task has classes."""
        return ()

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """RGB colour of each class, 0 to 255, if the task has classes."""
        return ()

    def loss(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        """The loss, a scalar; `count` replaces that of the target where a step has several batches."""
        raise NotImplementedError

    def count(self, target: Tensor) -> Tensor:
        """The numbers of pixels or images that the loss divides or weighs by, `()` or `(numbers,)`."""
        raise NotImplementedError

    def metric(self) -> RunningMetric:
        """An empty metric."""
        raise NotImplementedError

    def check(self, logits_shape: Sequence[int], target: Tensor) -> None:
        """Raises ValueError unless the target fits logits of that shape; looks at values in CPU memory alone."""
        raise NotImplementedError

    # From stored labels to targets and back to pictures

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes of Pillow that stored labels may have."""
        return MODES

    def to_picture(self, label: Any) -> Any:
        """A stored label as a picture, where it is an array or nested lists; anything else stays as it is."""
        array = np.array(label) if isinstance(label, list) else label
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            return label
        if array.ndim == 3 and 1 in (array.shape[-1], array.shape[0] if array.shape[-1] != 3 else 0):
            array = array[..., 0] if array.shape[-1] == 1 else array[0]  # an axis of one channel
        return self._from_array(array) if array.ndim in (2, 3) else label

    def _from_array(self, values: np.ndarray) -> Image.Image:
        """A picture of 8 bits where all values are whole and fit, else of 16 bits or of floating point."""
        is_byte = values.dtype.kind != "f" or bool((values % 1 == 0).all())
        if is_byte and values.min(initial=0) >= 0 and values.max(initial=0) <= 255:
            return Image.fromarray(values.astype(np.uint8))
        return Image.fromarray(values if values.dtype == np.uint16 else values.astype(np.float32))

    def check_stored(self, label: Any, size: tuple[int, int] | None) -> None:
        """Raises ValueError unless a stored label is a picture of one of the `modes`, of the image's size.

        The message is part of a sentence.

        Args:
            label: What is stored, as `to_picture` gives it.
            size: (width, height) of the image, in pixels; None if it is not known.
        """
        mode = getattr(label, "mode", None)
        if mode not in self.modes:
            found = f"pixels of mode {mode}" if mode else f"{label!r} in place of a picture"
            how = "give the task the colours of its classes as `colors`" if mode == "RGB" else "convert it"
            raise ValueError(f"found {found}, allowed is {' or '.join(self.modes)}; {how}")
        if size is not None and label.size != size:
            raise ValueError(
                f"found {label.size[0]} x {label.size[1]} pixels, its image has {size[0]} x {size[1]}; labels must "
                "have the size of their image"
            )

    def to_target(self, label: Image.Image, geometry: "Geometry") -> Tensor:
        """The target of a stored label, after flip, turn, scale and resize.

        Raises:
            ValueError: For values that a label of this task cannot have; the message is part of a sentence.
        """
        raise NotImplementedError

    def read(self, label: Image.Image) -> Any:
        """Decodes a stored label into the form that the geometry works on; raises ValueError as `to_target` does."""
        raise NotImplementedError

    def note(self, label: Image.Image) -> str:
        """Part of a sentence on how a stored label is read, where people should know of it; else empty."""
        return ""

    def unlabeled(self, size: tuple[int, int]) -> Tensor:
        """The target of a picture without this label, of `size` (height, width)."""
        raise NotImplementedError

    def predict(self, logits: Tensor) -> Tensor:
        """Turns logits `(batch, channels, height, width)` into predictions of the form that targets have."""
        raise NotImplementedError

    def find_ends(self, label: Tensor) -> Ends:
        """The values that are painted black and white."""
        return 0.0, 1.0

    def paint(self, label: Tensor, ends: Ends) -> np.ndarray:
        """A target or prediction without its batch axis, painted; unlabeled pixels are pale."""
        low, high = ends
        values = (label.float().nan_to_num() - low) / (high - low)
        painted = np.empty((*label.shape[-2:], 3), np.uint8)
        painted[:] = to_bytes(values)
        painted[self._is_unlabeled(label).numpy()] = UNLABELED
        return painted

    def _is_unlabeled(self, label: Tensor) -> Tensor:
        return ~label.isfinite().all(dim=0)

    def blend(self, label: Tensor, painted: np.ndarray, opacity: float) -> tuple[np.ndarray, np.ndarray]:
        """Colours that are laid over a picture, and their opacity by pixel: one channel is a tint."""
        return np.array(HIGHLIGHT), painted[..., :1] / 255 * opacity

    def legend(self, label: Tensor) -> Iterator[tuple[str, tuple[int, int, int], str]]:
        """Text, colour and share of what a painted prediction shows."""
        return iter(())


def to_bytes(values: Tensor) -> np.ndarray:
    """Values from 0 to 1 `(channels, height, width)` as uint8 `(height, width, channels)`."""
    return (values * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def _freeze(value: Any) -> Any:
    """Tuples in place of lists."""
    return tuple(map(_freeze, value)) if isinstance(value, list | tuple) else value


def _thaw(value: Any) -> Any:
    """Lists in place of tuples."""
    return list(map(_thaw, value)) if isinstance(value, tuple) else value


def make_task(name: str, description: Any, kinds: Mapping[str, type[Task]]) -> Task:
    """A row from plain data, as `Task.to_dict` gives it or a YAML file holds it.

    Raises:
        ValueError: The kind or a setting is unknown or missing, or cannot be used.
    """
    known = f"Give `kind`, one of {list(kinds)}, and its settings, such as {{'kind': 'regression', 'unit': 'm'}}."
    if not isinstance(description, Mapping) or description.get("kind") not in kinds:
        raise ValueError(f"Task '{name}' is described by {description!r}. {known}")
    kind = kinds[description["kind"]]
    settings = {key: value for key, value in description.items() if key != "kind"}
    allowed = [item.name for item in fields(kind) if item.name != "name"]
    if unknown := sorted(set(map(str, settings)) - set(allowed)):
        raise ValueError(f"Task '{name}' has the settings {unknown}, which a {kind.kind} does not know: {allowed}.")
    try:
        return kind(name, **settings)
    except TypeError as error:
        raise ValueError(
            f"Task '{name}' cannot be made: {error}. A {kind.kind} has the settings {allowed}."
        ) from error
