# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The examples of CONTRIBUTING.md work: a method of one's own, and a family of encoders of one's own."""

import pytest
import torch
from documents import CONTRIBUTING, blocks_of
from peft import PeftModel, get_peft_model
from tiny_models import make_swin, perturb
from transformers import SegformerConfig, SegformerModel

from peft_polyhistor import AdapterConfig
from peft_polyhistor.models.blocks import BLOCK_FAMILIES, find_blocks


TASKS = ["semseg", "normals", "saliency"]
METHOD, FAMILY = blocks_of(CONTRIBUTING, "python")


def run(text):
    namespace = {"__name__": "contributed"}
    exec(compile(text, str(CONTRIBUTING), "exec", dont_inherit=True), namespace)
    return namespace


@pytest.fixture
def config_class(registry):
    """The config of the method of the example."""
    return run(METHOD)["SharedDownConfig"]


@pytest.fixture
def adapted(config_class):
    return get_peft_model(make_swin(), config_class(tasks=TASKS)).eval()


@torch.no_grad()
def maps_of(model, pixels, task):
    return model(pixels, task=task).last_hidden_state


def test_the_method_is_as_short_as_is_said():
    assert len(METHOD.splitlines()) <= 65


def test_the_method_checks_its_settings(config_class):
    with pytest.raises(ValueError, match="`reduction_factor` must be"):
        config_class(reduction_factor=0)


def test_the_method_starts_as_the_frozen_encoder(adapted, pixels):
    with torch.no_grad():
        assert torch.equal(maps_of(adapted, pixels, "semseg"), make_swin()(pixels).last_hidden_state)


def test_the_method_has_the_parameters_that_its_docstring_says(adapted):
    widths = [8, 16, 32, 32, 64]
    expected = sum(d * (d // 8) + len(TASKS) * (d * (d // 8) + d // 8 + 3 * d) for d in widths)
    assert adapted.get_nb_trainable_parameters()[0] == expected


def test_the_tasks_of_the_method_differ_and_share_what_is_shared(adapted, pixels):
    perturb(adapted, std=0.3)
    assert not torch.allclose(maps_of(adapted, pixels, "semseg"), maps_of(adapted, pixels, "normals"))
    before = [site.down.clone() for site in adapted.base_model.router.generators["default"]]
    adapted.add_task("depth", from_="normals")
    after = [site.down for site in adapted.base_model.router.generators["default"]]
    assert all(map(torch.equal, before, after))
    assert torch.equal(maps_of(adapted, pixels, "depth"), maps_of(adapted, pixels, "normals"))


def test_the_method_saves_loads_bakes_and_merges(adapted, pixels, tmp_path):
    expected = maps_of(perturb(adapted, std=0.3), pixels, "normals")
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_swin(), tmp_path).eval()
    torch.testing.assert_close(maps_of(loaded, pixels, "normals"), expected, rtol=1e-5, atol=1e-5)
    baked = loaded.bake(["normals"])
    torch.testing.assert_close(maps_of(baked, pixels, None), expected, rtol=1e-5, atol=1e-5)
    merged = loaded.merge_and_unload(task="normals")
    with torch.no_grad():
        torch.testing.assert_close(merged(pixels).last_hidden_state, expected, rtol=1e-5, atol=1e-4)


def test_the_family_carries_adapters_and_starts_as_the_frozen_encoder():
    config = SegformerConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4])
    segformer, images = SegformerModel(config).eval(), torch.randn(2, 3, 64, 64)
    assert not find_blocks(segformer)
    families = dict(BLOCK_FAMILIES)
    try:
        run(FAMILY)
        [name] = set(BLOCK_FAMILIES) - set(families)
        with torch.no_grad():
            frozen = segformer(images).last_hidden_state
        both = {"tasks": ["semseg", "normals"], "sublayers": ["attention", "feed_forward"]}
        model = get_peft_model(segformer, AdapterConfig(**both)).eval()
        assert name[1] == "SegformerLayer" and len(model.base_model.router.generators["default"]) == 2 * 4
        assert torch.equal(maps_of(model, images, "semseg"), frozen)
        perturb(model, std=0.3)
        assert not torch.allclose(maps_of(model, images, "semseg"), maps_of(model, images, "normals"))
    finally:
        BLOCK_FAMILIES.clear()
        BLOCK_FAMILIES.update(families)
