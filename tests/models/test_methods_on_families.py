# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""One method of each kind on every encoder family: it trains, or says why it cannot."""

import threading

import pytest
import timm
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model

from peft_polyhistor import (
    AdapterConfig,
    BitFitConfig,
    MultiTaskLoraConfig,
    RelativeBiasConfig,
    SharedAdapterConfig,
    VmtAdapterConfig,
    VptDeepConfig,
    view_encoder,
)
from peft_polyhistor.methods.per_task import adapt_per_task


TASKS = ["a", "b"]
KINDS = {
    "adapter": AdapterConfig(tasks=TASKS, sublayers=["attention", "feed_forward"]),
    "shared_adapter": SharedAdapterConfig(tasks=TASKS),
    "bitfit": BitFitConfig(tasks=TASKS),
    "relative_bias": RelativeBiasConfig(tasks=TASKS),
    "vpt": VptDeepConfig(tasks=TASKS, prompts=3),
    "lora": MultiTaskLoraConfig(tasks=TASKS),
    "vmt_adapter": VmtAdapterConfig(tasks=TASKS, sublayers=["attention", "feed_forward"]),
}
NO_TABLES = (ValueError, "trains parameters called relative_position_bias_table, and .* has none")
NO_WINDOWS = (ValueError, "is not the windowed attention of Swin")
REFUSALS = {
    **{("relative_bias", name): NO_TABLES for name in ("swinv2", "pvt", "pvt_v2", "timm_swinv2", "timm_pvt_v2")},
    **{("vpt", name): NO_WINDOWS for name in ("swinv2", "pvt", "pvt_v2", "timm_swinv2", "timm_pvt_v2")},
    ("shared_adapter", "swinv2"): (
        ValueError,
        "trains the norms of Swinv2Stages and puts adapters at the same modules",
    ),
    ("shared_adapter", "timm_swinv2"): (ValueError, "trains the norms of .* and puts adapters at the same modules"),
    ("lora", "timm_swinv2"): (ValueError, "calls no layer to make queries, keys and values"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_method_works_on_every_family(family, kind, make_model, perturb):
    base, pixels = view_encoder(make_model()).double(), torch.randn(2, 3, 96, 96).double()
    with torch.no_grad():
        frozen = base(pixels)
    if (kind, family) in REFUSALS:
        error, message = REFUSALS[kind, family]
        with pytest.raises(error, match=message):
            get_peft_model(base, KINDS[kind])
        return
    model = get_peft_model(base, KINDS[kind]).double().eval()
    if kind != "vpt":
        torch.testing.assert_close(model(pixels, task="b"), frozen, rtol=1e-9, atol=1e-9)
    perturb(model)
    together = model(pixels, tasks=["b", "a"])
    for task in TASKS:
        torch.testing.assert_close(together[task], model(pixels, task=task), rtol=1e-9, atol=1e-9)
    assert torch.equal(together["a"][3], together["b"][3]) == (kind == "shared_adapter")
    sum(stage_map.square().sum() for maps in together.values() for stage_map in maps).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()] == []


@pytest.mark.parametrize(
    "family",
    ["swin", "timm_swinv2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("swinv2", "timm_swin"))],
    indirect=True,
)
@torch.no_grad()
def test_threads_with_images_of_their_own_sizes(make_model, family):
    """The shift of Swin's windows follows from the size of the map."""
    encoder = view_encoder(make_model()).double()
    images = [torch.randn(1, 3, side, side).double() for side in (32, 96, 160)]
    expected = [encoder(pixels) for pixels in images]
    found = [[] for _ in images]

    def run(pixels, results):
        with torch.no_grad():
            results += [encoder(pixels) for _ in range(8)]

    threads = [threading.Thread(target=run, args=pair) for pair in zip(images, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, maps in zip(found, expected, strict=True):
        assert len(results) == 8
        for got in results:
            torch.testing.assert_close(list(got), list(maps), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["timm_swinv2"], indirect=True)
def test_layers_that_attention_does_not_call_carry_no_adapters(make_model, make_dense, make_labels):
    """timm's Swin V2 reads the weight of `qkv`."""
    model = adapt_per_task(make_dense(encoder=make_model()), LoraConfig(r=2, init_lora_weights=False))
    model(torch.randn(1, 3, 96, 96), make_labels(model.config.tasks, 1, 96, 96)).loss.backward()
    trained = {name: p for name, p in model.encoder.named_parameters() if p.requires_grad}
    assert trained and all(p.grad.any() for p in trained.values())
    message = r"reads the weight of '.*blocks\.0\.attn\.qkv' and calls no layer .* LoRA would have no effect there"
    with pytest.raises(ValueError, match=message):
        get_peft_model(make_model(), MultiTaskLoraConfig(tasks=TASKS, target_modules=["attn.qkv"]))
    get_peft_model(make_model(), MultiTaskLoraConfig(tasks=TASKS, target_modules=["attn.proj"]))


@pytest.mark.parametrize("family", ["timm_pvt_v2"], indirect=True)
def test_timm_checkpointing_is_refused_where_tasks_have_adapters(make_model, make_dense):
    """It recomputes layers with the adapter that is active in the backward pass, that of the last task."""
    pixels = torch.randn(1, 3, 96, 96)
    model = adapt_per_task(make_dense(encoder=make_model()), LoraConfig(r=2)).train()
    net = model.encoder.adapted.base_model.model.net
    net.set_grad_checkpointing(True)
    with pytest.raises(
        ValueError, match=r"timm's `grad_checkpointing` switched on.*`set_grad_checkpointing\(False\)`"
    ):
        model(pixels)
    with torch.no_grad():
        model(pixels)
    net.set_grad_checkpointing(False)
    model(pixels)


@pytest.mark.parametrize("kind", ["bitfit", "vpt"])
@torch.no_grad()
def test_offloaded_encoders_of_timm_predict_the_same(kind, perturb):
    """timm's attention reads a table of its own, which it is not called for."""
    net = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=12, num_heads=(1, 2, 2, 4), depths=(1, 1, 1, 1))
    model, pixels = perturb(get_peft_model(net, KINDS[kind])).eval(), torch.randn(1, 3, 224, 224)
    expected = model(pixels, task="b")
    torch.testing.assert_close(cpu_offload(model, torch.device("cpu"))(pixels, task="b"), expected, rtol=0, atol=0)
