# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Cases of PEFT's tests: small models, every method on those it is for, and skipped tests with their reasons."""

from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, SwinConfig, SwinModel
from transformers.models.swin.modeling_swin import SwinPreTrainedModel

from peft_polyhistor import METHODS, MultiTaskDenseModel, view_encoder


TASKS = ["semseg"]  # one, so that no call names it
CONFIG = SwinConfig(
    embed_dim=8,
    depths=[1, 1, 1, 1],
    num_heads=[1, 2, 2, 4],
    window_size=2,
    image_size=64,
    drop_path_rate=0.0,
    qkv_bias=False,  # the bias of the keys gets no gradient
    attn_implementation="eager",  # the others compute otherwise where position tables train
    name_or_path="tiny-swin",
)


class TwoOutputs:
    """A model as PEFT's tests need it: its type can be set, and it returns two numbers for each item of a batch.

    The numbers are sines: the tests train towards minus infinity, with a learning rate of 0.5. The factors in front of
    them are such that every parameter moves, and none explodes.
    """

    dtype = torch.float32

    def generate(self, x: Tensor, **kwargs) -> SimpleNamespace:
        """As of a language model, whose scores PEFT compares."""
        return SimpleNamespace(scores=[self(x)])


class Mlp(TwoOutputs, nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(10, 16)
        self.lin0 = nn.Linear(16, 16)
        self.lin1 = nn.Linear(16, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(self.lin0(self.stem(x.to(self.dtype))))
        return torch.sin(0.3 * self.head(torch.sin(self.lin1(x))))


class Swin(TwoOutputs, SwinModel):
    def __init__(self, config: SwinConfig):
        super().__init__(config)
        self.layernorm = nn.Identity()  # a large step of one bias in front of it would leave the others no gradient

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings.projection

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(0.3 * super().forward(x.to(self.dtype)).pooler_output[:, :2])


class SwinStages(TwoOutputs, SwinPreTrainedModel):
    """For the methods that work on stage maps."""

    def __init__(self, config: SwinConfig):
        super().__init__(config)
        self.encoder = view_encoder(SwinModel(config))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings.patch_embeddings.projection

    def forward(self, x: Tensor) -> Tensor:
        maps = [stage_map.movedim(1, -1) for stage_map in self.encoder(x.to(self.dtype))]
        return torch.sin(sum(F.layer_norm(tokens, tokens.shape[-1:])[..., :2].mean((1, 2)) for tokens in maps))


class SwinDense(TwoOutputs, MultiTaskDenseModel):
    def __init__(self, config: Any, encoder: nn.Module | None = None):
        super().__init__(config, encoder)
        self.decoders.heads["semseg"].batch_norm = nn.Identity()  # the biases in front of it would get no gradient

    def forward(self, x: Tensor) -> Tensor:
        # At a factor of 2, the large steps of PEFT's tests leave Polyhistor-Lite no finite weights.
        return torch.sin(1.5 * super().forward(x.to(self.dtype)).logits["semseg"].mean((2, 3))[:, :2])


MODELS = {
    "MLP": Mlp,
    "Swin": lambda: Swin(CONFIG),
    "SwinStages": lambda: SwinStages(CONFIG),
    "SwinDense": lambda: SwinDense.from_encoder(SwinModel(CONFIG), TASKS, decoder_width=12, decoder_dropout=0.0),
}


class Models:
    """Makes models by name, the same ones at every call."""

    @staticmethod
    def from_pretrained(name: str, dtype: torch.dtype | None = None) -> nn.Module:
        if name not in MODELS:  # the folder of a merged model
            [kind] = AutoConfig.from_pretrained(name).architectures
            return globals()[kind].from_pretrained(name)
        torch.manual_seed(0)
        model = MODELS[name]().eval().requires_grad_(False)
        for parameter in model.parameters():  # fresh ones are so small that adapters change too little
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        return model.to(dtype)


CONTROL = "PEFT-LoRA"
STAGES_NEEDED = ["vmt_adapter", "vmt_adapter_lite"]
NOT_ON = {
    "MLP": ["decoders", *STAGES_NEEDED, "relative_bias", "vpt_deep", "vpt_shallow"],
    "Swin": ["decoders", *STAGES_NEEDED],
    "SwinStages": [name for name in METHODS if name not in STAGES_NEEDED],  # the others run on Swin itself
    "SwinDense": [],
}
SETTINGS = {"MLP": {"target_modules": ["lin0", "lin1"]}, "SwinDense": {"modules_to_save": ["decoders"]}}


def name_of(config_class: type[PeftConfig]) -> str:
    """Name of a method by its config."""
    return next((name for name, known in METHODS.items() if known is config_class), CONTROL)


def cases() -> list[tuple]:
    """Name of the method, name of the model, config class and its arguments, as PEFT's tests take them."""
    rows = []
    for model, without in NOT_ON.items():
        of_model = SETTINGS.get(model, {})
        rows.append((CONTROL, model, LoraConfig, {"target_modules": ["q_proj", "v_proj"], **of_model}))
        for name, config_class in METHODS.items():
            narrow = {"reduction_factor": 2} if hasattr(config_class, "reduction_factor") else {}
            if name not in without:
                rows.append((name, model, config_class, {"tasks": TASKS, **narrow, **of_model}))
    return rows


NO_MERGING = "merging: several tasks do not fit into one encoder, and most adapters compute what no weight can"
# The tests that call no more than `merge_and_unload`, by the methods that merge by that alone.
MERGING = {name: ["merge_layers_fp16", "merge_layers_multi", "safe_merge"] for name in ("bitfit", "relative_bias")}

# By reason: tests, and the methods that do not run them.
SKIPS = {
    NO_MERGING: ([], []),  # wherever PEFT's tests ask whether a method merges
    "no method has LoRA's weighted sums of adapters": (["weighted_combination_of_adapters"], METHODS),
    "no method has LoRA's field `bias`": (
        ["adding_multiple_adapters_with_bias_raises", "save_load_roundtrip_fsdp_wrapped_learnable_bias"],
        METHODS,
    ),
    "VPT does not start as the frozen encoder": (["disable_adapters"], ["vpt_deep", "vpt_shallow"]),
    "VPT-shallow adapts one layer, whichever are chosen": (["training_layer_indexing"], ["vpt_shallow"]),
    "decoders have no adapters, and start as those of the model": (
        [
            "add_adapter_no_autocast_adapter_dtype",
            "disable_adapter",
            "load_model_low_cpu_mem_usage",
            "save_load_roundtrip",
            "unload_adapter",
        ],
        ["decoders"],
    ),
    "a model keeps a copy of its config, so that one config adapts several models": (
        ["from_pretrained_config_construction"],
        METHODS,
    ),
}
