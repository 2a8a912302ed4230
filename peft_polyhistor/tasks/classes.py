# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Class names of PASCAL VOC and of human parts, and the VOC palette."""

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
HUMAN_PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")


def voc_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """Computes the RGB colours, 0 to 255, of the first class ids in the palette of PASCAL VOC.

    The bits of an id go in turn to red, green and blue, each channel from its highest bit down.

    Raises:
        ValueError: `classes` is not from 0 to 256.
    """
    if not 0 <= classes <= 256:
        raise ValueError(f"A VOC palette has 0 to 256 colours, got {classes}. Give the task its own `colors`.")

    def intensity(class_id: int, channel: int) -> int:
        return sum((class_id >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))

    return tuple(
        (intensity(class_id, 0), intensity(class_id, 1), intensity(class_id, 2)) for class_id in range(classes)
    )
