# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""One view of a hierarchical vision transformer: the four maps of its stages."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_MAPPING,
    AutoBackbone,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PvtConfig,
    PvtModel,
    PvtV2Backbone,
    PvtV2Model,
    SwinConfig,
    SwinModel,
    Swinv2Backbone,
    Swinv2Model,
)
from transformers.backbone_utils import BackboneMixin

from .pvt import PvtStages
from .stages import BackboneStages, StageEncoder
from .swin import SwinStages, Swinv2Stages


# The first that a model is an instance of.
VIEWS = {
    SwinModel: SwinStages,
    PvtModel: PvtStages,
    Swinv2Backbone: Swinv2Stages,
    BackboneMixin: BackboneStages,
}
# Models that are viewed as the backbone of their family, and the parts it takes over from them.
BACKBONES = {
    Swinv2Model: (Swinv2Backbone, ["embeddings", "encoder"]),
    PvtV2Model: (PvtV2Backbone, ["encoder"]),
}
# Model types that are viewed in whatever class they were saved from.
SAVED_TYPES = ["swin", "swinv2", "pvt", "pvt_v2", "timm_wrapper"]


def view_encoder(model: nn.Module) -> StageEncoder:
    """The stages of any encoder, which takes the model over.

    Known are Swin, Swin V2, PVT and PVT v2 of transformers in each of their classes, every other backbone of
    transformers with four stages, and models of timm, bare or in a wrapper of transformers.

    Raises:
        TypeError: The model is none of these.
        ValueError: It has not four stages, or is a model of timm whose arguments are unknown.
    """
    if isinstance(model, StageEncoder):
        return model
    encoder = _view(model)
    if len(encoder.widths) != 4:
        raise ValueError(
            f"A dense model needs the maps of four stages; {type(model).__name__} yields {len(encoder.widths)} "
            f"(widths {encoder.widths}). Choose another encoder, or name four stages in its `out_features` (in timm "
            "`features_only=True` and `out_indices`)."
        )
    return encoder.train(model.training)


def _view(model: nn.Module) -> StageEncoder:
    if any(cls.__module__.startswith(("timm.", "transformers.models.timm_")) for cls in type(model).__mro__):
        from .timm_stages import view_timm  # only now: timm takes longer to import than all of this package

        return view_timm(model)
    inner = _as_backbone(model.base_model if isinstance(model, PreTrainedModel) else model)
    for kind, view in VIEWS.items():
        if isinstance(inner, kind):
            return view(inner)
    raise TypeError(
        f"{type(model).__name__} is no encoder of a known family, so it is not known how it makes the maps of its "
        "stages. Give a Swin, Swin V2, PVT or PVT v2 of transformers (e.g. SwinModel) or timm, a backbone of "
        "transformers with four `out_features` (AutoBackbone), or your own subclass of StageEncoder, which defines "
        "`config`, `widths`, `strides`, `needs_norm` and `stage_maps`."
    )


def _as_backbone(model: nn.Module) -> nn.Module:
    if not isinstance(model, PreTrainedModel) or type(model) not in BACKBONES:
        return model
    backbone_class, parts = BACKBONES[type(model)]
    config = deepcopy(model.config)
    config.out_features = [name for name in config.stage_names if name != "stem"]
    with torch.device("meta"):
        backbone = backbone_class(config)
    for part in parts:
        setattr(backbone, part, getattr(model, part))
    return backbone.train(model.training)


def build_encoder(config: PreTrainedConfig) -> StageEncoder:
    """An encoder with fresh weights; the same errors as `view_encoder`."""
    if isinstance(config, SwinConfig):
        return view_encoder(SwinModel(config, add_pooling_layer=False))
    if isinstance(config, PvtConfig):
        return view_encoder(PvtModel(config))
    if config.model_type == "timm_wrapper":  # its class would import timm
        return view_encoder(transformers.TimmWrapperModel(config))  # type: ignore[arg-type]
    return view_encoder(AutoBackbone.from_config(config))


ASSETS = Path(__file__).parent.parent / "assets"


def load_encoder(name: str | Path, **kwargs: Any) -> StageEncoder:
    """A pretrained encoder.

    Args:
        name: `"swin-micro"`, which comes with this package (1.3 M parameters, see its README in `assets`), or a folder
            or Hub id of transformers, or of timm (`"timm/pvt_v2_b0.in1k"`).
        **kwargs: For `from_pretrained`, e.g. `revision`.

    Raises:
        OSError: There is no such folder or Hub repository.
        TypeError, ValueError: As in `view_encoder`.
    """
    embedded = {file.parent.name: file.parent for file in ASSETS.glob("*/config.json")}
    is_path = isinstance(name, Path) or name.startswith(("/", ".", "~"))
    name = str(Path(os.path.expanduser(name)) if is_path else name)
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(f"There is no folder '{name}'. Give one, a Hub id, or one of {list(embedded)}.")
    source = str(embedded.get(name, name))
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **kwargs)  # else it might ask
    model_class = _class_of(config, name)
    if issubclass(model_class, BackboneMixin):
        # By name: some families count a stem, some do not.
        kwargs["out_features"] = [f"stage{i}" for i in range(1, 5)]
    encoder = view_encoder(model_class.from_pretrained(source, **kwargs))
    # What PEFT records as the base model, and looks for on the Hub: the embedded encoder is not there.
    encoder.config.name_or_path = "" if name in embedded else name
    if name in embedded:
        encoder.config.embedded_name = name  # by which `peft_polyhistor.load` finds it again
    return encoder


def _class_of(config: PreTrainedConfig, name: str) -> type[PreTrainedModel]:
    """The class to load; for the families known by name the one it was saved from, so that no weight is left over."""
    if config.model_type in SAVED_TYPES:
        plain = MODEL_MAPPING[type(config)]
        return getattr(transformers, (config.architectures or [""])[0], plain)  # type: ignore[arg-type]  # no tuple
    if config.model_type == "timm_backbone":
        raise TypeError(
            f"'{name}' holds a TimmBackbone, which transformers does not load from a folder. Save the model as a "
            "TimmWrapperModel, or put it into a dense model and save that."
        )
    # Not AutoBackbone, which asks the Hub even for a folder.
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise TypeError(
            f"'{name}' holds a {config.model_type} model, which is no backbone in transformers. Choose one that "
            "yields the maps of four stages, e.g. Swin or PVT v2."
        )
    return MODEL_FOR_BACKBONE_MAPPING[type(config)]  # type: ignore[return-value]  # no tuple
