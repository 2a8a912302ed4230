# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The joint transform of one image and its labels, with a chosen draw."""

from peft_polyhistor.data import JointTransform


def transform_image(columns, image_size, draw=None):
    """Transforms an image and its labels by a draw, or as in evaluation where there is none.

    `columns` holds PIL images by the name of their column; the result has no axis of images either.
    """
    joint = JointTransform(image_size, train=draw is not None)
    joint._draw = lambda image_id: draw
    result = joint({"image_id": ["a"]} | {name: [image] for name, image in columns.items()})
    return {name: values[0] for name, values in result.items()}
