# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Results of runs, as tables and comparisons read them."""


def scores_of(semseg, error):
    """Scores of two tasks: mIoU of semseg, and error of normals."""
    return {"semseg": {"mIoU": semseg}, "normals": {"mErr": error}}


def run_of(semseg, error, rate=2e-4):
    """The results of a run with a learning rate."""
    return {
        "scores": scores_of(semseg, error), "parameters": {"encoder": 0, "all": 1234},
        "settings": {"learning_rate": rate},
    }  # fmt: skip
