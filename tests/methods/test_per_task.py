# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT's own methods in the dense model, one adapter per task."""

import copy
import pickle

import pytest
import torch
from methods_table import PLACED_BY_FILE, check_equal
from peft import (
    AdaLoraConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    RandLoraConfig,
    ShiraConfig,
    VeraConfig,
)
from safetensors.torch import load_file, save_file
from tiny_models import recompute_layers
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from peft_polyhistor import PolyhistorConfig, binary, register_task
from peft_polyhistor.data import collate
from peft_polyhistor.evaluation import count_trainable
from peft_polyhistor.methods.per_task import adapt_per_task, load_per_task, save_per_task


CONFIGS = {
    "lora": lambda: LoraConfig(r=2),
    "dora": lambda: LoraConfig(r=2, use_dora=True),
    "loha": lambda: LoHaConfig(r=2),
    "lokr": lambda: LoKrConfig(r=2),
    "ia3": lambda: IA3Config(),
    "oft": lambda: OFTConfig(oft_block_size=4),
    "hra": lambda: HRAConfig(r=2),
    "vera": lambda: VeraConfig(r=2, d_initial=0.1),
    "randlora": lambda: RandLoraConfig(r=2),
}
QUICK = ("lora", "ia3")  # one that adds modules, and one that scales
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONFIGS])
def config(request):
    return CONFIGS[request.param]()


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 96, 96)


def test_starts_as_the_frozen_model(config, make_dense, pixels):
    expected = make_dense().encoder(pixels)
    actual = adapt_per_task(make_dense(), config).eval().encoder(pixels, tasks=["semseg", "normals"])
    for maps in actual.values():
        for got, wanted in zip(maps, expected, strict=True):
            torch.testing.assert_close(
                got, wanted, rtol=1e-4, atol=1e-4
            )  # some methods multiply by a rounded identity


def test_gradient_reaches_every_adapter_and_nothing_else(config, make_dense, make_labels, pixels, perturb):
    model = perturb(adapt_per_task(make_dense(), config)).train()
    for _ in range(2):  # what PEFT switches off and on in one pass must not show in the next
        model.zero_grad()
        model(pixels, make_labels(model.config.tasks, 2, 96, 96)).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.any(), name
            else:
                assert parameter.grad is None, name
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for task in model.config.tasks:
        assert any(f".{task}" in name and "decoders" not in name for name in names)


def test_tasks_have_adapters_of_their_own(config, make_dense, pixels):
    model = adapt_per_task(make_dense(), config).eval()
    before = model(pixels).logits
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if parameter.requires_grad and ".semseg" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    after = model(pixels).logits
    assert (after["semseg"] - before["semseg"]).norm() > 1e-4 * before["semseg"].norm()
    for task in ("human_parts", "normals"):
        torch.testing.assert_close(after[task], before[task], **EXACT)


def test_saved_adapters_load_in_one_call_and_one_by_one(config, make_dense, make_swin, pixels, perturb, tmp_path):
    model = perturb(adapt_per_task(make_dense(), config)).eval()
    save_per_task(model, tmp_path)
    loaded = load_per_task(make_dense(), tmp_path).eval()
    expected, actual = model(pixels).logits, loaded(pixels).logits
    for task in model.config.tasks:
        torch.testing.assert_close(actual[task], expected[task], **EXACT)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    alone = PeftModel.from_pretrained(make_dense().encoder, tmp_path / "normals").eval()
    for got, wanted in zip(alone(pixels), model.encoder(pixels, tasks=["normals"])["normals"], strict=True):
        torch.testing.assert_close(got, wanted, **EXACT)


def test_loaded_adapters_go_on_training_where_asked(config, make_dense, perturb, tmp_path):
    model = perturb(adapt_per_task(make_dense(), config))
    save_per_task(model, tmp_path)
    loaded = load_per_task(make_dense(), tmp_path, is_trainable=True)
    assert count_trainable(loaded) == count_trainable(model)


def test_counts_one_adapter_per_task(make_dense):
    model = adapt_per_task(make_dense(), LoraConfig(r=3))
    # Per block of width d: queries, keys, values and output d -> d, and the MLP d -> 4 d -> d.
    per_task = sum(3 * (4 * (d + d) + 2 * (d + 4 * d)) for d in (8, 16, 32, 32, 64))
    decoders = sum(parameter.numel() for parameter in model.decoders.parameters())
    assert count_trainable(model) == {"encoder": 3 * per_task, "all": 3 * per_task + decoders}


def test_named_modules_are_adapted_and_no_others(make_dense):
    config = LoraConfig(r=3, target_modules=["q_proj"])
    model = adapt_per_task(make_dense(), config)
    assert count_trainable(model)["encoder"] == 3 * sum(3 * (d + d) for d in (8, 16, 32, 32, 64))
    assert config.target_modules == {"q_proj"}


@pytest.mark.parametrize("tasks", [["normals"], ["normals", "semseg"]])
def test_some_tasks_are_served_as_in_a_pass_of_all(make_dense, pixels, perturb, tasks):
    model = perturb(adapt_per_task(make_dense(), LoraConfig(r=2))).eval()
    everything, some = model(pixels).logits, model(pixels, tasks=tasks).logits
    assert list(some) == tasks
    for task in tasks:
        torch.testing.assert_close(some[task], everything[task], **EXACT)


def test_checkpointed_gradients_are_exact(make_dense, make_labels, pixels, perturb):
    model = perturb(adapt_per_task(make_dense(decoder_dropout=0.0), LoraConfig(r=2))).train()
    labels = make_labels(model.config.tasks, 2, 96, 96)

    def gradients():
        model.zero_grad()
        model(pixels, labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.encoder.named_parameters() if p.requires_grad}

    expected = gradients()
    recompute_layers(model)
    recomputed, run = [], type(model.encoder).following
    type(model.encoder).following = lambda self, task: recomputed.append(task) or run(self, task)
    try:
        actual = gradients()
    finally:
        type(model.encoder).following = run
    assert len(recomputed) > 2 * len(model.config.tasks)  # passes, and layers that are recomputed
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6)


def test_reentrant_checkpointing_is_refused(make_dense, pixels):
    model = adapt_per_task(make_dense(), LoraConfig(r=2)).train()
    recompute_layers(model, reentrant=True)
    for _ in range(2):
        with pytest.raises(ValueError, match="Reentrant checkpointing passes no gradient to adapters"):
            model(pixels)


def test_all_adapters_train_after_they_were_disabled(make_dense, pixels, perturb):
    model = perturb(adapt_per_task(make_dense(), LoraConfig(r=2))).eval()
    before = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    expected = model(pixels).logits
    with torch.no_grad(), model.encoder.adapted.disable_adapter():
        check_equal(model.encoder(pixels, tasks=["normals"])["normals"], make_dense().encoder(pixels))
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == before
    check_equal(model(pixels).logits, expected)


class Losses(TrainerCallback):
    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs["loss"]] if "loss" in logs else []


def train(model, samples, folder, resume=None):
    """Losses of three steps of Trainer, each of which saves a checkpoint."""
    arguments = TrainingArguments(
        str(folder), max_steps=3, save_steps=1, logging_steps=1, per_device_train_batch_size=1, learning_rate=0.01,
        remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True, eval_strategy="steps",
        eval_steps=1, load_best_model_at_end=True, label_names=["labels"], prediction_loss_only=True,
    )  # fmt: skip
    losses = Losses()
    trainer = Trainer(
        model, arguments, train_dataset=samples, eval_dataset=samples, data_collator=collate, callbacks=[losses]
    )
    trainer.train(resume_from_checkpoint=resume)
    return losses.values


@pytest.mark.slow
def test_trainer_saves_resumes_and_takes_the_best(make_dense, make_labels, tmp_path):
    def make():
        torch.manual_seed(0)
        return adapt_per_task(make_dense(["semseg", "normals"], decoder_dropout=0.0), LoraConfig(r=2))

    samples = [
        {"pixel_values": torch.randn(3, 64, 64)}
        | {task: label[0] for task, label in make_labels(["semseg", "normals"], 1, 64, 64).items()}
        for _ in range(3)
    ]
    model = make()
    expected = train(model, samples, tmp_path)
    resumed = make()
    assert train(resumed, samples, tmp_path, str(tmp_path / "checkpoint-2")) == expected[2:]
    assert_same_state(resumed, model)
    assert_same_state(load_per_task(make_dense(["semseg", "normals"]), tmp_path / "checkpoint-3"), model)
    weights = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} <= weights.keys()
    assert not any("patch_embeddings" in name for name in weights)


def assert_same_state(model, other):
    torch.testing.assert_close(model.state_dict(), other.state_dict(), **EXACT)


def test_a_copy_saves_its_own_weights(make_dense, perturb, tmp_path):
    model = adapt_per_task(make_dense(), LoraConfig(r=2))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        perturb(twin).save_pretrained(tmp_path)
        assert_same_state(load_per_task(make_dense(), tmp_path), twin)
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()


def test_bad_calls_say_what_is_needed(make_dense, pixels, tmp_path):
    model = adapt_per_task(make_dense(), LoraConfig(r=2))
    with pytest.raises(ValueError, match=r"got a PerTaskDenseModel with adapters\. Build a fresh one"):
        adapt_per_task(model, LoraConfig(r=2))
    with pytest.raises(ValueError, match=r"got a Linear\. Build a fresh one"):
        adapt_per_task(nn.Linear(2, 2), LoraConfig(r=2))
    with pytest.raises(ValueError, match="PolyhistorConfig is a method for several tasks at once"):
        adapt_per_task(make_dense(), PolyhistorConfig())
    with pytest.raises(ValueError, match="PromptTuningConfig has no `target_modules`"):
        adapt_per_task(make_dense(), PromptTuningConfig())
    with pytest.raises(ValueError, match=r"`tasks` must be a list of some of \['semseg', .* got \['depth'\]"):
        model.encoder(pixels, tasks=["depth"])
    with pytest.raises(ValueError, match="got None"):
        model.encoder(pixels)
    with pytest.raises(ValueError, match=r"without an adapter per task\. Use `adapt_per_task` first"):
        save_per_task(make_dense(), tmp_path)
    with pytest.raises(ValueError, match=r"cannot be pushed from here\. Save it, and upload the folder"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    save_per_task(model, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"saliency.*not found\. Give a folder of `save_per_task`"):
        load_per_task(make_dense(["semseg", "saliency"]), tmp_path)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_starts_that_change_the_frozen_weights_are_refused(start, make_dense):
    """Each adapter would subtract its part from the weights of all tasks."""
    with pytest.raises(ValueError, match=rf"init_lora_weights='{start}' changes the frozen weights.* 'gaussian'"):
        adapt_per_task(make_dense(), LoraConfig(r=2, init_lora_weights=start))


def test_a_method_of_one_adapter_leaves_the_model_as_it_was(make_dense, pixels):
    model = make_dense()
    trains = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ValueError, match="only 1 trainable adapter"):
        adapt_per_task(model, AdaLoraConfig(total_step=9))
    assert [parameter.requires_grad for parameter in model.parameters()] == trains
    adapted = adapt_per_task(model, LoraConfig(r=2))
    check_equal(adapted(pixels).logits, make_dense()(pixels).logits, **PLACED_BY_FILE)


@pytest.mark.parametrize("tasks", [["attention", "normals"], ["normals", "lora_A"]])
def test_a_task_named_like_a_part_of_a_saved_key_is_refused(make_dense, tasks):
    """PEFT would leave weights of the other tasks out of their files."""
    for task in set(tasks) - {"normals"}:
        register_task(binary(task))
    model = make_dense(tasks)
    before = [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
    with pytest.raises(
        ValueError, match=r"A task, and so its adapter, cannot be named '(attention|lora_A)'.*Choose a name"
    ):
        adapt_per_task(model, LoraConfig(r=2))
    assert [(name, parameter.requires_grad) for name, parameter in model.named_parameters()] == before


@torch.no_grad()
def test_adapters_that_compute_with_the_weights_load_too(make_dense, pixels, perturb, tmp_path):
    model = perturb(adapt_per_task(make_dense(), ShiraConfig(r=2)))
    save_per_task(model, tmp_path)
    check_equal(load_per_task(make_dense(), tmp_path).eval()(pixels).logits, model.eval()(pixels).logits)


def test_what_does_not_fit_is_refused_and_leaves_the_model(make_dense, tmp_path):
    save_per_task(adapt_per_task(make_dense(["semseg", "normals"]), LoraConfig(r=2)), tmp_path)
    model = make_dense(["semseg", "normals"])
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for name in ("decoders.safetensors", "normals/adapter_model.safetensors"):
        content = (tmp_path / name).read_bytes()
        weights = load_file(tmp_path / name)
        weights.pop(min(weights))
        save_file(weights, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} does not fit the model: 1 weights differ.*None in it"):
            load_per_task(model, tmp_path)
        (tmp_path / name).write_bytes(content[:50])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            load_per_task(model, tmp_path)
        (tmp_path / name).write_bytes(content)
    torch.testing.assert_close(model.state_dict(), before, **EXACT)
    load_per_task(model, tmp_path)
