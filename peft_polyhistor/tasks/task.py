# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Base class of all tasks: their settings, and the methods that a kind of tasks implements."""

from collections.abc import Collection, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ..checks import check_number
from .running_metric import RunningMetric


if TYPE_CHECKING:
    from ..data.geometry import Geometry


UNLABELED = (224, 224, 192)  # colour of unlabelled contours in the label images of VOC
HIGHLIGHT = (230, 60, 40)
COLUMNS = "image_id", "image", "pixel_values"  # of samples, beside one per task
MODES = "L", "P"  # Pillow modes of 8-bit label images; `Task.to_image` reads the indices of a palette image

Ends = tuple[float, float]
Colour = tuple[int, int, int]
KeyEntry = tuple[str, Colour]  # text and colour
LegendEntry = tuple[str, Colour | None, str]  # text, colour (`None`: transparent), and share of the pixels or ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A dense task; each subclass is a kind of task.

    A label has four forms: stored (an image), target (a tensor), prediction (same form as a target), and painted
    (`(height, width, 3)` uint8). The targets of one batch have the same size.

    Args:
        name: Key of predictions and labels. It must be a Python identifier, as modules are named after it, but no
            attribute of `torch.nn.ModuleDict`, nor `image_id`, `image` or `pixel_values`.
        loss_weight: Weight of the task in the summed loss.
        tag: Tag of the task on the Hub; by default the name.

    Raises:
        ValueError: A setting is invalid.
    """

    name: str = field(kw_only=False)
    loss_weight: float = 1.0
    tag: str = ""

    kind: ClassVar[str]  # name of the subclass in plain data

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, freeze(getattr(self, item.name)))
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"The name of a task must be a Python identifier, got {self.name!r}. Use e.g. 'depth'.")
        if self.name in COLUMNS or hasattr(nn.ModuleDict(), self.name):
            raise ValueError(
                f"A task must not be named '{self.name}': a column of the data or an attribute of PyTorch's modules "
                f"has this name. Use e.g. '{self.name}_map'."
            )
        self._check_settings()

    def _check_settings(self) -> None:
        """Raises ValueError for an invalid setting."""
        check_number("loss_weight", self.loss_weight)
        if self.loss_weight <= 0:
            raise ValueError(f"`loss_weight` of task '{self.name}' must be positive, got {self.loss_weight}.")

    def _check_choice(self, setting: str, allowed: Sequence[str]) -> None:
        value = getattr(self, setting)
        if value not in allowed:
            raise ValueError(f"`{setting}` of task '{self.name}' must be one of {list(allowed)}, got {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Converts the task to plain data for `make_task`: its kind, and the settings that differ from the default."""
        settings = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "name"}
        defaults = {item.name: item.default for item in fields(self) if item.default is not MISSING}
        own = {name: _thaw(value) for name, value in settings.items() if defaults.get(name, MISSING) != value}
        return {"kind": self.kind} | own

    # Scores

    @property
    def channels(self) -> int:
        """Number of output channels of the decoder."""
        return 1

    @property
    def score(self) -> str:
        """Key of the headline score in `metric().compute()`."""
        raise NotImplementedError(f"{type(self).__name__} must define `score`.")

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher headline score is better."""
        return True

    @property
    def better(self) -> str:
        """Direction of better headline scores in tables: `"up"` or `"down"`."""
        return "up" if self.higher_is_better else "down"

    @property
    def unit(self) -> str:
        """Unit of the headline score."""
        return "percent"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty for a task without classes."""
        return ()

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """RGB colour of each class, 0 to 255; empty for a task without classes."""
        return ()

    def loss(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        """Computes the loss, a scalar; `count` replaces `self.count(target)` if a step has several batches."""
        raise NotImplementedError(f"{type(self).__name__} must define `loss`.")

    def count(self, target: Tensor) -> Tensor:
        """Counts the pixels or images that normalise the loss, `()` or `(numbers,)`."""
        raise NotImplementedError(f"{type(self).__name__} must define `count`.")

    def fit_bias(self, target: Tensor) -> Tensor:
        """Computes the logits `(channels,)` with a low loss on a batch of targets if all pixels have these logits.

        Args:
            target: Targets in CPU memory with at least one labelled pixel.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `fit_bias`.")

    def metric(self) -> RunningMetric:
        """Creates an empty metric."""
        raise NotImplementedError(f"{type(self).__name__} must define `metric`.")

    def check(self, logits_shape: Sequence[int], target: Tensor) -> None:
        """Raises ValueError unless the target fits logits of that shape; checks values in CPU memory only."""
        raise NotImplementedError(f"{type(self).__name__} must define `check`.")

    # From stored labels to targets, and from predictions to painted images

    @property
    def modes(self) -> tuple[str, ...]:
        """Pillow modes that stored labels may have."""
        return MODES

    def to_image(self, label: Any) -> Any:
        """Converts a stored label from an array, nested lists or a palette image; any other label stays unchanged.

        The values of a palette image are its indices.

        Raises:
            ValueError: An array has a wrong shape or dtype, or values that its task does not allow; or a palette holds
                grey levels that may be the label. As in `check_stored`, callers complete the message.
        """
        if getattr(label, "mode", None) == "P" and "P" in self.modes:
            return self._from_palette(label)
        array = np.array(label) if isinstance(label, list) else label
        if not isinstance(array, np.ndarray):
            return label
        shape = array.shape
        if array.ndim == 3 and 1 in (array.shape[-1], array.shape[0] if array.shape[-1] != 3 else 0):
            array = array[..., 0] if array.shape[-1] == 1 else array[0]  # an axis of one channel
        if array.ndim in (2, 3) and array.dtype.kind in "biuf":
            with suppress(TypeError):  # Pillow has no mode for it
                return self._from_array(array)
        raise ValueError(
            f"found an array of {array.dtype} with shape {shape}, allowed are numbers with shape (height, width), or "
            "uint8 with shape (height, width, 3) for labels in RGB; reshape or convert it"
        )

    def _from_palette(self, label: Image.Image) -> Image.Image:
        """Converts a palette image to its indices; ValueError if the palette has grey levels that may be the label."""
        palette = palette_of(label)
        levels = palette[:, 0]
        differ = np.flatnonzero(levels != np.arange(len(levels)))
        is_mask = levels.tolist() == [0, 255]  # black and white, for 0 and 1
        if (palette == palette[:, :1]).all() and len(differ) and not is_mask and self._allows(levels):
            pairs = ", ".join(f"{levels[index]} at index {index}" for index in differ[:3])
            raise ValueError(
                f"found a palette of grey levels that are no indices ({pairs}), and either may be the label; save it "
                "as greyscale, without a palette"
            )
        return Image.fromarray(np.asarray(label))

    def _allows(self, values: np.ndarray) -> bool:
        try:
            self.read(Image.fromarray(values[None]))
        except ValueError:
            return False
        return True

    def _from_array(self, values: np.ndarray) -> Image.Image:
        """Converts an array to an 8-bit image if all values are integers in range, else to 16 bits or float32."""
        is_byte = values.dtype.kind != "f" or bool((values % 1 == 0).all())
        if is_byte and values.min(initial=0) >= 0 and values.max(initial=0) <= 255:
            return Image.fromarray(values.astype(np.uint8))
        return Image.fromarray(values if values.dtype == np.uint16 else values.astype(np.float32))

    def check_stored(self, label: Any, size: tuple[int, int] | None) -> None:
        """Raises ValueError unless a stored label is an image of one of the `modes`, in the size of its image.

        The message has no file name and no full stop, as callers complete it.

        Args:
            label: Result of `to_image`.
            size: (width, height) of the image, in pixels; `None` if it is unknown.
        """
        mode = getattr(label, "mode", None)
        if mode not in self.modes:
            found = f"pixels of mode {mode}" if mode else f"the type {type(label).__name__} instead of an image"
            how = "convert it" if mode else "cast its column to datasets.Image()"
            if mode == "RGB" and hasattr(self, "colors"):
                how = "give the task the colours of its classes as `colors`"
            raise ValueError(f"found {found}, allowed is {' or '.join(self.modes)}; {how}")
        if size is not None and label.size != size:
            is_swapped = label.size == size[::-1]
            cause = "; an EXIF orientation of the image may have swapped its sides" if is_swapped else ""
            raise ValueError(
                f"found {label.size[0]} x {label.size[1]} pixels, its image has {size[0]} x {size[1]}; labels must "
                f"have the size of their image{cause}"
            )

    def to_target(self, label: Image.Image, geometry: "Geometry") -> Tensor:
        """Converts a stored label to a target, with flip, rotation, scale and resize.

        Raises:
            ValueError: The task does not allow a value. Callers complete the message.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `to_target`.")

    def read(self, label: Image.Image) -> Any:
        """Decodes a stored label for the geometry; raises ValueError like `to_target`."""
        raise NotImplementedError(f"{type(self).__name__} must define `read`.")

    def note(self, label: Image.Image, found: Any) -> str:
        """Describes a special interpretation of a stored label, as the end of "Labels of <task> ..."; else empty.

        Args:
            label: The stored label.
            found: What `read` returns for it.
        """
        return ""

    def contents(self, found: Any) -> Collection[Any]:
        """Lists what a label holds, from the result of `read`, as far as `review` needs it; by default nothing."""
        return ()

    def review(self, contents: Set[Any], labels: int) -> str:
        """Describes in a sentence what all labels of a dataset together lack; else empty.

        Args:
            contents: Union of the `contents` of the labels.
            labels: Number of labels, at least 1.

        Raises:
            ValueError: A model cannot learn the task from these labels.
        """
        return ""

    def unlabeled(self, size: tuple[int, int]) -> Tensor:
        """Creates the target of an image without this label, of `size` (height, width)."""
        raise NotImplementedError(f"{type(self).__name__} must define `unlabeled`.")

    def predict(self, logits: Tensor) -> Tensor:
        """Converts logits `(batch, channels, height, width)` to predictions, which have the form of targets."""
        raise NotImplementedError(f"{type(self).__name__} must define `predict`.")

    def find_ends(self, label: Tensor) -> Ends:
        """Returns the values that are painted black and white."""
        return 0.0, 1.0

    def paint(self, label: Tensor, ends: Ends) -> np.ndarray:
        """Paints a target or prediction without a batch axis; unlabelled pixels are pale."""
        low, high = ends
        values = (label.float().nan_to_num() - low) / (high - low)
        painted = np.empty((*label.shape[-2:], 3), np.uint8)
        painted[:] = to_bytes(values)
        painted[self._is_unlabeled(label).numpy()] = UNLABELED
        return painted

    def _is_unlabeled(self, label: Tensor) -> Tensor:
        return ~label.isfinite().all(dim=0)

    def blend(self, label: Tensor, painted: np.ndarray, opacity: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the colours to lay over an image, and their opacity by pixel; by default, a tint."""
        share = painted[..., :1] / 255 * opacity
        share[self._is_unlabeled(label).numpy()] = 0
        return np.array(HIGHLIGHT), share

    def key(self, label: Tensor, prediction: Tensor) -> Iterator[KeyEntry]:
        """Yields the meaning of the colours in which a batch of labels and its predictions are painted, if any."""
        return iter(())

    def legend(self, label: Tensor) -> Iterator[LegendEntry]:
        """Yields the legend of a prediction that is laid over an image."""
        return iter(())


def palette_of(label: Image.Image) -> np.ndarray:
    """Returns the colours `(colours, 3)` uint8 of a palette image, without black ones at the end that are not used."""
    palette = np.array(label.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = max(int(np.asarray(label).max(initial=0)), int(palette.any(axis=1).nonzero()[0].max(initial=0)))
    return palette[: used + 1]


def is_byte(value: Any) -> bool:
    """Tells whether a setting is an integer from 0 to 255, and neither a bool nor a float that equals one."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value in range(256)


def to_bytes(values: Tensor) -> np.ndarray:
    """Converts values from 0 to 1 `(channels, height, width)` to uint8 `(height, width, channels)`."""
    return (values * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def freeze(value: Any) -> Any:
    """Converts lists to tuples at any depth, and integers of NumPy to those of Python, which JSON can hold."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return tuple(map(freeze, value)) if isinstance(value, list | tuple) else value


def _thaw(value: Any) -> Any:
    """Converts tuples to lists, at any depth."""
    return list(map(_thaw, value)) if isinstance(value, tuple) else value
