# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Models whose parameters accelerate keeps elsewhere between calls, or spreads over devices."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from methods_table import PLACED_BY_FILE, TASKS, check_equal, predict, rows
from peft import PeftModel


@torch.no_grad()
def test_offloaded_models_predict_the_same(adapt, make_base, perturb, pixels):
    model = perturb(adapt(make_base()))
    expected = {task: predict(model, pixels, task) for task in TASKS}
    offloaded = cpu_offload(model, torch.device("cpu"))
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    for task in TASKS:
        check_equal(predict(offloaded, pixels, task), expected[task])


@torch.no_grad()
def test_models_on_the_disk_predict_the_same(adapt, make_base, perturb, pixels, tmp_path):
    model = perturb(adapt(make_base()))
    expected = predict(model, pixels, "normals")
    check_equal(predict(disk_offload(model, str(tmp_path), torch.device("cpu")), pixels, "normals"), expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_an_adapter_loads_onto_a_model_that_is_offloaded(
    adapt, make_swin, perturb, pixels, tmp_path, low_cpu_mem_usage
):
    model = perturb(adapt(make_swin()))
    model.save_pretrained(tmp_path)
    base = cpu_offload(make_swin(), torch.device("cpu"))
    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    tolerance = PLACED_BY_FILE if low_cpu_mem_usage else {}
    check_equal(loaded(pixels, task="normals"), model(pixels, task="normals"), **tolerance)


@rows(lambda row: row.merges)
def test_a_merge_into_parameters_that_are_elsewhere_is_refused(adapt, make_swin):
    model = cpu_offload(adapt(make_swin()), torch.device("cpu"))
    with pytest.raises(ValueError, match="Parameters of the model are offloaded, so nothing can be merged"):
        model.merge_and_unload(task="semseg")
