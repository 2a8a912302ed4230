# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Tasks that predict a class for each pixel."""

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..classes import voc_palette
from ..labels import check_class_labels
from ..losses import IGNORE_INDEX, RAREST, count_labeled, cross_entropy
from ..metrics import MeanIoU
from ..task import MODES, UNLABELED, Colour, Ends, KeyEntry, LegendEntry, Task, freeze, is_byte, palette_of


if TYPE_CHECKING:
    from ...data.geometry import Geometry


@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """A class for each pixel: cross-entropy, and mean intersection over union.

    Targets are class ids, int64 `(height, width)`, 255 where unlabelled. Labels take the nearest pixel.

    Args:
        classes: Names of the classes, or a mapping of names to RGB colours, which sets `colors` too.
        colors: RGB colour of each class, 0 to 255; by default those of PASCAL VOC, black for the background. A task
            with its own colours also reads RGB labels: each pixel must have the colour of a class, or
            (224, 224, 192) where unlabelled. A palette image is read by its colours if its palette holds such alone,
            and otherwise by its indices.
        values: Stored value of each class, 0 to 255; by default 0, 1, 2 ... in the order of the classes.
        ignore: Stored values of unlabelled pixels, 0 to 255.
        background: Whether the first class is the background. Then the border that a rotation exposes belongs to it,
            and overlays leave it transparent. Otherwise the border is unlabelled.
        ignore_empty: Whether a label that holds only the first class after the augmentation counts as unlabelled.
    """

    classes: Sequence[str] | Mapping[str, Sequence[int]]
    colors: tuple[tuple[int, int, int], ...] = ()
    values: tuple[int, ...] = ()
    ignore: tuple[int, ...] = (IGNORE_INDEX,)
    background: bool = False
    ignore_empty: bool = False

    kind: ClassVar[str] = "segmentation"
    score: ClassVar[str] = "mIoU"

    def _check_settings(self) -> None:
        super()._check_settings()
        if isinstance(self.classes, Mapping):
            colors = self.classes.values()
            object.__setattr__(self, "colors", freeze(list(colors)))
            object.__setattr__(self, "classes", tuple(self.classes))
        names = self.classes
        are_names = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
        count = len(names) if are_names else 0
        if not 2 <= count < IGNORE_INDEX or len(set(names)) < count:
            raise ValueError(
                f"`classes` of task '{self.name}' must be 2 to {IGNORE_INDEX - 1} different names, got {names!r}. For "
                "one class against a background, use the kind `binary`, or name both as classes."
            )
        for setting, what in (("colors", "colours"), ("values", "stored values"), ("ignore", "stored values")):
            given = getattr(self, setting)
            if not isinstance(given, tuple) or (setting == "colors" and not all(isinstance(c, tuple) for c in given)):
                raise ValueError(f"`{setting}` of task '{self.name}' must be a list of {what}, got {given!r}.")
            if setting != "ignore" and given and len(given) != count:
                raise ValueError(
                    f"Task '{self.name}' has {count} class names and {len(given)} {what}. Give one for each class, "
                    "or none."
                )
        first: dict[Colour, str] = {}
        for color, name in zip(self.colors, names, strict=False):  # there may be no colours
            if first.setdefault(color, name) != name:
                raise ValueError(
                    f"The classes '{first[color]}' and '{name}' of task '{self.name}' have the same colour, {color}, "
                    "so RGB labels cannot tell them apart. Give each class its own colour."
                )
        channels = [channel for color in self.colors for channel in color]
        wrong = [byte for byte in (*channels, *self.values, *self.ignore) if not is_byte(byte)]
        stored = self.values or tuple(range(count))
        if wrong or len(channels) != 3 * len(self.colors) or len({*stored, *self.ignore}) < count + len(self.ignore):
            raise ValueError(
                f"Task '{self.name}' must have colours of three values, and distinct stored values for classes and "
                f"unlabelled pixels, all integers from 0 to 255; got {self.colors}, {stored} and {self.ignore}."
            )

    @property
    def channels(self) -> int:
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        # Black, the first colour, is that of the background.
        return self.colors or voc_palette(self.channels + 1)[0 if self.background else 1 :][: self.channels]

    def loss(self, logits: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        return cross_entropy(logits, target, count)

    def count(self, target: Tensor) -> Tensor:
        return count_labeled(target)

    def fit_bias(self, target: Tensor) -> Tensor:
        """Computes the logarithm of the share of each class, at least `RAREST`."""
        counts = torch.bincount(target[target != IGNORE_INDEX].flatten(), minlength=self.channels)
        return (counts / counts.sum()).clamp(min=RAREST).log()

    def metric(self) -> MeanIoU:
        return MeanIoU(self.channels)

    def check(self, logits_shape: Sequence[int], target: Tensor) -> None:
        check_class_labels(self.name, logits_shape, target)

    @property
    def modes(self) -> tuple[str, ...]:
        return (*MODES, "RGB") if self.colors else MODES

    def _from_palette(self, label: Image.Image) -> Image.Image:
        known = {*self.colors, UNLABELED}
        is_painted = bool(self.colors) and all(tuple(colour) in known for colour in palette_of(label).tolist())
        return label.convert("RGB") if is_painted else super()._from_palette(label)

    def check_stored(self, label: Any, size: tuple[int, int] | None) -> None:
        super().check_stored(label, size)
        if getattr(label, "format", None) in ("JPEG", "MPO"):
            raise ValueError(
                "found a JPEG, which changes class ids beside edges; store labels in a lossless format (PNG) from the "
                "original"
            )

    def read(self, label: Image.Image) -> np.ndarray:
        """Decodes a label to class ids, uint8 `(height, width)`, 255 where unlabelled."""
        if label.mode == "RGB":
            return self._read_colors(np.asarray(label).astype(np.int32) @ (2**16, 2**8, 1))
        stored = np.asarray(label)
        values = self.values or range(self.channels)
        wrong = sorted(set(np.flatnonzero(np.bincount(stored.ravel(), minlength=256))) - {*values, *self.ignore})
        if wrong:
            allowed = f"0 to {self.channels - 1}" if not self.values else ", ".join(map(str, self.values))
            raise ValueError(
                f"found the values {', '.join(map(str, wrong[:8]))}, allowed are {allowed} and "
                f"{', '.join(map(str, self.ignore))}. Add classes, or list values without a label in `ignore`"
            )
        ids = np.full(256, IGNORE_INDEX, np.uint8)
        ids[list(values)] = range(self.channels)
        return ids[stored]

    def _read_colors(self, stored: np.ndarray) -> np.ndarray:
        known = np.array([*self.colors, UNLABELED], np.int32) @ (2**16, 2**8, 1)
        order = np.argsort(known, kind="stable")
        places = order[np.searchsorted(known, stored, sorter=order).clip(max=len(known) - 1)]
        wrong = stored[known[places] != stored]
        if wrong.size:
            found = [(int(color) >> 16, int(color) >> 8 & 255, int(color) & 255) for color in np.unique(wrong)[:3]]
            raise ValueError(
                f"found colours of no class in {wrong.size / stored.size:.1%} of the pixels, such as "
                f"{', '.join(map(str, found))}; allowed are the colours of the classes, and {UNLABELED} where "
                "unlabelled. Store labels in a lossless format (PNG)"
            )
        return np.where(places < self.channels, places, IGNORE_INDEX).astype(np.uint8)

    def note(self, label: Image.Image, found: np.ndarray) -> str:
        return "" if self.contents(found) else "without a labelled pixel"

    def contents(self, found: np.ndarray) -> Collection[int]:
        values: list[int] = np.unique(found[found != IGNORE_INDEX]).tolist()
        return values

    def review(self, contents: Set[Any], labels: int) -> str:
        missing = [name for number, name in enumerate(self.class_names) if number not in contents]
        if len(missing) == self.channels:
            raise ValueError(
                f"None of the {labels} labels of {self.name} holds one of its classes: all pixels are unlabelled. "
                "Correct `values` or `ignore`, or restore the labels."
            )
        return f"No label of {self.name} holds {len(missing)} of its classes: {', '.join(missing)}." if missing else ""

    def to_target(self, label: Image.Image, geometry: "Geometry") -> Tensor:
        ids = Image.fromarray(self.read(label))
        values = geometry.take_nearest(ids, 0 if self.background else IGNORE_INDEX)
        if self.ignore_empty and np.isin(values, (0, IGNORE_INDEX)).all():
            values = np.full_like(values, IGNORE_INDEX)
        return torch.from_numpy(values).long()

    def unlabeled(self, size: tuple[int, int]) -> Tensor:
        return torch.full(size, IGNORE_INDEX)

    def predict(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def paint(self, label: Tensor, ends: Ends) -> np.ndarray:
        colours = np.full((256, 3), UNLABELED, dtype=np.uint8)
        colours[: self.channels] = self.palette
        return colours[label.numpy().astype(np.uint8)]

    def blend(self, label: Tensor, painted: np.ndarray, opacity: float) -> tuple[np.ndarray, np.ndarray]:
        shown = label.numpy() > 0 if self.background else np.ones(label.shape, bool)
        return painted, shown[..., None] * opacity

    def key(self, label: Tensor, prediction: Tensor) -> Iterator[KeyEntry]:
        for number in torch.cat([label.flatten(), prediction.flatten()]).unique().tolist():
            if number < self.channels:  # others are unlabelled
                yield self.class_names[number], self.palette[number]

    def legend(self, label: Tensor) -> Iterator[LegendEntry]:
        colours: dict[str, Colour | None] = dict(zip(self.class_names, self.palette, strict=True))
        if self.background:
            colours[self.class_names[0]] = None
        for name, share in self.shares(label.numpy()).items():
            yield name, colours[name], f"{share:.1%}" if share >= 0.0005 else "below 0.1%"

    def shares(self, ids: np.ndarray) -> dict[str, float]:
        """Computes the fraction of the pixels that each class in a map covers, by name, the largest first."""
        found, counts = np.unique(ids, return_counts=True)
        shares: Any = counts / counts.sum()
        return {self.class_names[found[i]]: float(shares[i]) for i in np.argsort(-shares, kind="stable")}
