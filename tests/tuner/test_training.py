# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Every method trains in every precision, with layers recomputed, averaged, compiled, and on quantised encoders."""

import copy
import logging
from functools import partial

import pytest
import torch
from methods_table import (
    TASKS,
    check_equal,
    differ,
    gradients,
    loss_of,
    predict,
    rows,
    tensors_of,
    trainable,
    without_gradient,
)
from packaging.version import Version
from peft import PeftModel, get_peft_model
from tiny_models import recompute_layers
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from transformers import SwinModel, TorchAoConfig

from peft_polyhistor import DecodersConfig, MultiTaskDenseModel, PolyhistorLiteConfig, StageEncoder


@torch.no_grad()
def test_a_base_of_half_precision_keeps_it(row, adapt, make_swin, pixels, perturb):
    pixels = pixels.bfloat16()
    model = adapt(make_swin().bfloat16())
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}  # as PEFT casts
    if row.starts_frozen:
        check_equal(model(pixels, task="semseg"), make_swin().bfloat16()(pixels))
    perturb(model)
    for output in model(pixels, tasks=TASKS).values():
        assert {tensor.dtype for tensor in tensors_of(output).values()} == {torch.bfloat16}
        assert all(tensor.isfinite().all() for tensor in tensors_of(output).values())
        assert differ(output, make_swin().bfloat16()(pixels))


def test_adapters_of_half_precision_train(make_config, make_dense, make_labels, pixels, perturb):
    model = get_peft_model(make_dense().bfloat16(), make_config(), autocast_adapter_dtype=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    perturb(model.train())(pixels.bfloat16(), make_labels(TASKS, 2, 96, 128)).loss.backward()
    assert without_gradient(model) == []


def test_autocast_trains(adapt, make_base, pixels, perturb):
    model = perturb(adapt(make_base())).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(loss_of(predict(model, pixels, task)) for task in TASKS)
    loss.backward()
    assert without_gradient(model) == []


def enable_checkpointing(model, reentrant=False):
    """A StageEncoder, which has no such switch, becomes part of a dense model."""
    dense = MultiTaskDenseModel.from_encoder(model, TASKS) if isinstance(model, StageEncoder) else model
    recompute_layers(dense, reentrant)


def test_checkpointed_gradients_are_exact(adapt, make_base, pixels, perturb):
    """Also when another pass, with another task and size, comes between forward and backward."""
    plain = perturb(adapt(make_base())).train()
    for module in plain.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0
    checkpointed = copy.deepcopy(plain)
    enable_checkpointing(checkpointed.base_model.model)
    for model in (plain, checkpointed):
        outputs = [predict(model, pixels, task) for task in TASKS[:2]]
        predict(model, pixels[:, :, :, :96], "normals")
        sum(map(loss_of, outputs)).backward()
    used = [name for name in trainable(plain) if "heads.normals" not in name]
    check_equal(
        {name: gradients(checkpointed)[name] for name in used}, {name: gradients(plain)[name] for name in used}
    )
    copy.deepcopy(checkpointed)  # nothing of the graph is left behind, which could not be copied


@rows(lambda row: row.config_class is not DecodersConfig)
def test_reentrant_checkpointing_is_refused(adapt, make_base, pixels):
    model = adapt(make_base()).train()
    enable_checkpointing(model.base_model.model, reentrant=True)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"Reentrant checkpointing passes no gradient.*'use_reentrant': False"):
            predict(model, pixels, "semseg")


def test_a_checkpointing_that_knows_no_tasks_is_named(make_swin, pixels):
    model = get_peft_model(make_swin(), PolyhistorLiteConfig(tasks=TASKS)).train()
    block = model.base_model.model.encoder.layers[2].blocks[0]
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # as timm's `set_grad_checkpointing`
    loss = loss_of(model(pixels, task="semseg"))
    with pytest.raises(RuntimeError, match=r"backward pass.*timm's `set_grad_checkpointing`: switch it off"):
        loss.backward()


def test_checkpointing_before_adapting_warns_of_nothing(adapt, make_dense, pixels, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    dense = make_dense()
    recompute_layers(dense)
    model = adapt(dense).train()
    loss_of(predict(model, pixels, "semseg")).backward()
    assert not [record.message for record in caplog.records if "radients" in record.message]


def test_half_precision_with_a_scaler_trains(adapt, make_dense, make_labels, pixels):
    model = adapt(make_dense()).train()
    start = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    optimizer = torch.optim.Adam(trainable(model).values(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for _ in range(3):  # what starts at zero lets gradient through to the rest from the second step on
        with torch.autocast("cpu", torch.float16):
            loss = model(pixels[:, :, :64, :64], make_labels(TASKS, 2, 64, 64)).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert loss.isfinite() and scaler.get_scale() == 256  # no step was skipped
    unmoved = [name for name, parameter in trainable(model).items() if torch.equal(parameter, start[name])]
    assert unmoved == []


@torch.no_grad()
def test_an_average_of_the_weights_predicts(adapt, make_base, pixels, perturb):
    model = perturb(adapt(make_base()))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    average.update_parameters(model)
    first = {name: parameter.clone() for name, parameter in trainable(model).items()}
    average.update_parameters(perturb(model))
    expected = {name: 0.75 * first[name] + 0.25 * parameter for name, parameter in trainable(model).items()}
    torch.testing.assert_close(trainable(average.module), expected)
    for name, parameter in trainable(model).items():
        parameter.copy_(trainable(average.module)[name])
    assert average.module is not model
    check_equal(predict(average.module.eval(), pixels, "normals"), predict(model, pixels, "normals"))


@pytest.mark.slow
@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.10"),
    reason="Dynamo of torch 2.7 breaks the graph at a context manager; 2.8 and 2.9 were not tried",
)
@rows(lambda row: row.name == "polyhistor_lite")
@torch.no_grad()
def test_compiles_into_one_graph(adapt, make_dense, make_swin, pixels, perturb):
    torch.compiler.reset()
    model = perturb(adapt(make_dense(encoder=make_swin(depths=[1, 1, 1, 1]))))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    check_equal(compiled(pixels).logits, model(pixels).logits)


@pytest.mark.slow
def test_a_graph_for_each_list_of_tasks(adapt, make_base, pixels, perturb):
    """Compiled the first time it is asked for, with the values and gradients of no graph."""
    torch.compiler.reset()
    model = perturb(adapt(make_base()))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(copy.deepcopy(model), backend=counter, fullgraph=True)
    for tasks, graphs in ((TASKS, 1), (TASKS[:2], 2), (TASKS, 2), (TASKS[:2], 2)):
        outputs = [other(pixels, tasks=tasks) for other in (compiled, model)]
        assert counter.frame_count == graphs
        check_equal(tensors_of(outputs[0]), tensors_of(outputs[1]), rtol=1e-4, atol=1e-5)
    for output in outputs:
        loss_of(output).backward()
    got, expected = (
        {name: gradient for name, gradient in gradients(other).items() if gradient is not None}
        for other in (compiled._orig_mod, model)
    )
    check_equal(got, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def quantised(make_swin, tmp_path):
    """A Swin whose linear layers hold integers of 8 bits, loaded as transformers loads it."""
    quantization = pytest.importorskip("torchao.quantization", reason="the extra 'slow' installs torchao")
    make_swin(embed_dim=32, num_heads=[1, 2, 4, 8]).save_pretrained(tmp_path / "swin")
    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    return SwinModel.from_pretrained(tmp_path / "swin", quantization_config=settings)


@pytest.mark.slow
def test_trains_on_a_quantised_encoder(
    adapt, make_dense, make_swin, make_labels, quantised, pixels, perturb, tmp_path
):
    kinds = {type(module.weight).__name__ for module in quantised.modules() if isinstance(module, nn.Linear)}
    assert kinds == {"Int8Tensor"}
    state = copy.deepcopy(quantised)
    model = perturb(adapt(make_dense(encoder=quantised))).train()
    model(pixels, make_labels(TASKS, 2, 96, 128)).loss.backward()
    assert without_gradient(model) == []
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(make_dense(encoder=state), tmp_path / "adapter").eval()
        expected = model.eval()(pixels).logits
        check_equal(loaded(pixels).logits, expected)
        whole = PeftModel.from_pretrained(
            make_dense(encoder=make_swin(embed_dim=32, num_heads=[1, 2, 4, 8])), tmp_path / "adapter"
        )
        for task, logits in whole.eval()(pixels).logits.items():  # integers of 8 bits are near, and not equal
            assert 0 < (logits - expected[task]).abs().max() < 0.5 * expected[task].std()
