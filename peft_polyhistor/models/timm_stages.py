# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""timm models as encoders with four stages: Swin, Swin V2, PVT v2 and any other with four."""

import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TimmBackbone, TimmWrapperConfig, TimmWrapperModel, TimmWrapperPreTrainedModel

from ..extras import needs_extra
from .shift import FittedShift
from .stages import StageEncoder


with needs_extra("timm"):
    from timm.layers import PatchEmbed
    from timm.models.swin_transformer import SwinTransformerBlock
    from timm.models.swin_transformer_v2 import SwinTransformerV2Block


class FittedBlock(FittedShift):
    """Base of timm's Swin and Swin V2 blocks, whose maps are `(batch, height, width, channels)`."""

    target_shift_size: tuple[int, int]
    window_size: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        self.fit_shift(*x.shape[1:3])
        return super().forward(x)  # type: ignore[misc]  # defined by the block

    def shift_for(self, side: int) -> tuple[int, int]:
        height, width = self.window_size
        shifts = any(self.target_shift_size) and side > min(height, width)
        return (height // 2, width // 2) if shifts else (0, 0)


class FittedSwinBlock(FittedBlock, SwinTransformerBlock):  # type: ignore[override]  # there `shift_size` is set
    """A Swin block that fits its shift to each map."""


class FittedSwinV2Block(FittedBlock, SwinTransformerV2Block):  # type: ignore[override]  # there `shift_size` is set
    """A Swin V2 block that fits its shift to each map."""


class TimmStages(StageEncoder):
    """A timm model in a wrapper of transformers, without the final norm and the head.

    Note:
        timm's Swin and Swin V2 take images of one size, which determines the blocks that shift their windows. Here
        they take any size, and each pass fits the shift to its own maps, as in `SwinStages`; windows keep the size
        they have in the model, and smaller maps are padded. timm pads a map after the shift and transformers before
        it: if windows do not fill the maps, the two differ near the edges.
    """

    def __init__(self, model: TimmWrapperPreTrainedModel | TimmBackbone):
        super().__init__()
        self.config = model.config
        self.model = model  # the wrapper restores buffers that checkpoints do not contain
        # A file has a record of its own; that of the network is of its architecture.
        record = getattr(model.config, "pretrained_cfg", None) or getattr(self.net, "pretrained_cfg", None) or {}
        if {"mean", "std"} <= record.keys():
            self.image_statistics = {"image_mean": list(record["mean"]), "image_std": list(record["std"])}
        stages = self._choose_stages()
        self.widths = [stage["num_chs"] for stage in stages]
        self.strides = [stage["reduction"] for stage in stages]
        self.needs_norm = False
        for module in self.net.modules():
            if isinstance(module, SwinTransformerBlock | SwinTransformerV2Block):
                self.needs_norm = True
                module.dynamic_mask, module.attn_mask = True, None  # type: ignore[assignment]  # a buffer
                is_v2 = isinstance(module, SwinTransformerV2Block)
                module.__class__ = FittedSwinV2Block if is_v2 else FittedSwinBlock
            elif isinstance(module, PatchEmbed):
                module.strict_img_size, module.dynamic_img_pad = False, True

    @property
    def net(self) -> Any:
        """The timm model itself."""
        return net_of(self.model)

    def _choose_stages(self) -> list[dict[str, Any]]:
        stages = self.net.feature_info
        self.net.prune_intermediate_layers(list(range(len(stages))), prune_norm=True, prune_head=True)
        return stages

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        return self.net.forward_intermediates(pixel_values, output_fmt="NCHW", intermediates_only=True)


class TimmFeatureStages(TimmStages):
    """A timm model made with `features_only=True`, whose maps may have their channels last."""

    def _choose_stages(self) -> list[dict[str, Any]]:
        return self.net.feature_info.get_dicts()

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        maps = self.net(pixel_values)
        return maps if self.net.output_fmt == "NCHW" else [stage_map.movedim(-1, 1) for stage_map in maps]


def view_timm(model: nn.Module) -> TimmStages:
    """Wraps a timm model, bare or in a wrapper of transformers, as a `StageEncoder`.

    Raises:
        TypeError: The model cannot return the maps of its stages.
        ValueError: The model is bare and cannot be built again; see `wrap_timm`.
    """
    if not isinstance(model, TimmWrapperPreTrainedModel | TimmBackbone):
        model = wrap_timm(model)
    net = net_of(model)
    if hasattr(net, "forward_intermediates") and hasattr(net, "prune_intermediate_layers"):
        return TimmStages(model)
    if getattr(net, "output_fmt", None) in ("NCHW", "NHWC"):
        return TimmFeatureStages(model)
    raise TypeError(
        f"timm's {type(net).__name__} has no `forward_intermediates` that yields the maps of its stages. Create it "
        "with features_only=True, or wrap it in your own subclass of StageEncoder."
    )


def net_of(model: TimmWrapperPreTrainedModel | TimmBackbone) -> Any:
    """Returns the timm model in a wrapper."""
    return model._backbone if isinstance(model, TimmBackbone) else model.timm_model


def wrap_timm(net: nn.Module) -> TimmWrapperModel:
    """Wraps a model of `timm.create_model` as a `TimmWrapperModel`, whose config can build it again.

    Raises:
        ValueError: The model was built with arguments that timm does not record. The model does not change.
    """
    architecture = (getattr(net, "pretrained_cfg", None) or {}).get("architecture")
    trial: Any = deepcopy(net)
    args = {}
    if hasattr(net, "reset_classifier"):
        trial.reset_classifier(0, "")
    else:
        args = {"features_only": True, "out_indices": list(trial.feature_info.out_indices)}
    if architecture:
        with torch.device("meta"):
            wrapper = TimmWrapperModel(TimmWrapperConfig(architecture=architecture, model_args=args))
    if not architecture or _structure(wrapper.timm_model) != _structure(trial):
        raise ValueError(
            f"This {type(net).__name__} is not timm's '{architecture}' as it is by default, and timm does not record "
            "the arguments it was built with, so a saved model could not be built again. Create it as "
            "TimmWrapperModel(TimmWrapperConfig(architecture=..., model_args={...})) of transformers."
        )
    wrapper.timm_model = trial
    return wrapper.train(net.training)


def _structure(net: nn.Module) -> dict[str, object]:
    """Returns the printed layers and the shapes of the tensors of a network, by name.

    Without the masks of shifted windows, which depend on the size of the image, and without pooling and classifier.
    """
    layers = {name: repr(module) for name, module in net.named_modules() if not any(module.children())}
    tensors = {name: tensor.shape for name, tensor in [*net.named_parameters(), *net.named_buffers()]}
    # Swin V2 scales its relative positions by the window of its pretraining, which changes no shape.
    scales = {
        f"{name}.pretrained_window_size": tuple(module.pretrained_window_size)
        for name, module in net.named_modules()
        if hasattr(module, "pretrained_window_size")
    }
    left_out = re.compile(r"attn_mask$|^(head|fc|classifier|global_pool|flatten)\b")
    return {name: value for name, value in {**layers, **tensors, **scales}.items() if not left_out.search(name)}
