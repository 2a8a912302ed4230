# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Baked models leave Python: through torch.export, and through ONNX with onnxruntime."""

import pytest
import torch
from methods_table import TASKS, rows, tensors_of
from torch.export import Dim

from peft_polyhistor.config import BottleneckConfig


pytestmark = pytest.mark.slow
bakeable = rows(lambda row: issubclass(row.config_class, BottleneckConfig) and not row.config_class.shares_pass)

ANY_BATCH = {"args": ({0: Dim.DYNAMIC},)}


@pytest.fixture(params=[["normals"], TASKS], ids=["one task", "all tasks"])
def baked(request, adapt, make_dense, perturb):
    """A dense model of plain adapters, of one task and of all."""
    return perturb(adapt(make_dense())).bake(request.param).eval()


@bakeable
@torch.no_grad()
def test_exports_with_any_batch(baked, pixels):
    program = torch.export.export(baked, (pixels,), dynamic_shapes=ANY_BATCH)
    for batch in (2, 3):
        pictures = torch.randn(batch, 3, 96, 128)
        got = tensors_of(program.module()(pictures))
        torch.testing.assert_close(got, tensors_of(baked(pictures)), rtol=1e-4, atol=1e-5)


@bakeable
@torch.no_grad()
def test_runs_in_onnxruntime_with_any_batch(baked, pixels, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra 'slow' installs onnxscript and onnxruntime")
    runtime = pytest.importorskip("onnxruntime")
    tasks = list(baked(pixels).logits)
    names = {"input_names": ["pixel_values"], "output_names": tasks}
    torch.onnx.export(baked, (pixels,), dynamo=True, verbose=False, dynamic_shapes=ANY_BATCH, **names).save(
        tmp_path / "model.onnx"
    )
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    assert [output.name for output in session.get_outputs()] == tasks
    for batch in (2, 3):
        pictures = torch.randn(batch, 3, 96, 128)
        logits = session.run(None, {"pixel_values": pictures.numpy()})
        got = {task: torch.from_numpy(values) for task, values in zip(tasks, logits, strict=True)}
        torch.testing.assert_close(got, baked(pictures).logits, rtol=1e-4, atol=1e-5)
