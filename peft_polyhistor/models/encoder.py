# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Builds and loads encoders, and gives hierarchical vision transformers the common form of a `StageEncoder`."""

import os
import re
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import _CACHED_NO_EXIST as NONE_ON_HUB
from huggingface_hub import try_to_load_from_cache
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
from transformers.image_processing_utils import BaseImageProcessor

from .image_processor import FILE as PROCESSOR
from .pvt import PvtStages
from .stages import BackboneStages, StageEncoder
from .swin import SwinStages, Swinv2Stages


# A model gets the view of the first class that it is an instance of.
VIEWS = {
    SwinModel: SwinStages,
    PvtModel: PvtStages,
    Swinv2Backbone: Swinv2Stages,
    BackboneMixin: BackboneStages,
}
# Models that are converted to the backbone of their family, and the parts that the backbone takes over.
BACKBONES = {
    Swinv2Model: (Swinv2Backbone, ["embeddings", "encoder"]),
    PvtV2Model: (PvtV2Backbone, ["encoder"]),
}
# Weights that a file may lack: of masked images, and norms that a backbone adds to its maps.
FRESH = re.compile(r"mask_token$|hidden_states_norms\.")
# Model types that load as the class they were saved from.
SAVED_TYPES = ["swin", "swinv2", "pvt", "pvt_v2", "timm_wrapper"]


def view_encoder(model: nn.Module) -> StageEncoder:
    """Wraps an encoder as a `StageEncoder`, which takes over its modules.

    Supported are Swin, Swin V2, PVT and PVT v2 of transformers in each of their classes, all other backbones of
    transformers with four stages, and timm models, bare or in a wrapper of transformers. Modules that the four stage
    maps do not depend on (final norm, pooler, head) are dropped.

    Raises:
        TypeError: The model is of another kind.
        ValueError: The model does not have four stages, or is a timm model whose arguments are unknown.
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
        from .timm_stages import view_timm  # importing timm takes longer than importing this package

        return view_timm(model)
    inner = _as_backbone(model.base_model if isinstance(model, PreTrainedModel) else model)
    for part in (inner, model):  # some backbones name a part of theirs as the base
        for kind, view in VIEWS.items():
            if isinstance(part, kind):
                return view(part)
    raise TypeError(
        f"{type(model).__name__} is no encoder of a known family, so it is unknown how to get its stage maps. Give a "
        "Swin, Swin V2, PVT or PVT v2 of transformers (e.g. SwinModel) or timm, a backbone of transformers with four "
        "`out_features` (AutoBackbone), or your own subclass of StageEncoder, which defines `config`, `widths`, "
        "`strides`, `needs_norm` and `stage_maps`."
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
    """Builds an encoder with fresh weights; raises the errors of `view_encoder`."""
    if isinstance(config, SwinConfig):
        return view_encoder(SwinModel(config, add_pooling_layer=False))
    if isinstance(config, PvtConfig):
        return view_encoder(PvtModel(config))
    if config.model_type == "timm_wrapper":  # the class itself would import timm
        return view_encoder(transformers.TimmWrapperModel(config))  # type: ignore[arg-type]
    return view_encoder(AutoBackbone.from_config(config))


# transformers would inject an adapter that lies beside the weights. It looks into this folder, which is in no model.
NO_ADAPTER = {"adapter_kwargs": {"subfolder": "no-adapter"}}
ASSETS = Path(__file__).parent.parent / "assets"


def embedded_name(path: str | Path | None) -> str | None:
    """Returns the name of the embedded encoder whose folder a path is, and `None` for any other path."""
    folder = Path(os.path.expanduser(path or "."))
    is_path = isinstance(path, Path) or len(folder.parts) > 1
    return folder.name if is_path and folder.resolve().parent == ASSETS.resolve() else None


def load_encoder(name: str | Path, **kwargs: Any) -> StageEncoder:
    """Loads a pretrained encoder.

    The mean and the standard deviation of its image processor, if it has one, become those of dense models on it.

    Args:
        name: `"swin-mini"`, which comes with this package (2.7 M parameters, see its README in `assets`); a folder;
            a Hub id of transformers or of timm (`"timm/pvt_v2_b0.in1k"`); or the folder or Hub id of a saved dense
            model, whose encoder is taken.
        **kwargs: Arguments of `from_pretrained`, e.g. `revision`, or `dtype` in place of float32; for a backbone of
            more than four stages `out_features`. Code of a repository is never run.

    Raises:
        OSError: There is no such folder or Hub repository.
        TypeError: See `view_encoder`.
        ValueError: See `view_encoder`; or the file lacks weights of the encoder, or it is unknown which four of its
            stages to take.
    """
    if kwargs.pop("trust_remote_code", False):
        raise ValueError("`load_encoder` runs no code of a repository. Leave out `trust_remote_code=True`.")
    if "torch_dtype" in kwargs:  # the earlier name, which transformers still knows
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    embedded = {file.parent.name: file.parent for file in ASSETS.glob("*/config.json")}
    name = embedded_name(name) or name
    is_embedded = name in embedded  # which a path such as ./swin-mini is not
    is_path = isinstance(name, Path) or name.startswith(("/", ".", "~")) or "/" not in name
    name = str(Path(os.path.expanduser(name)) if is_path and name else name)
    if name in embedded and not is_embedded:
        name = os.path.join(".", name)
    if is_path and not is_embedded and not (name and Path(name).is_dir()):
        raise FileNotFoundError(
            f"There is no folder '{name}'. Give one, a Hub id such as 'owner/name', or one of {list(embedded)}."
        )
    source = str(embedded[name]) if is_embedded else name
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **kwargs)  # `False` prevents a prompt
    if config.model_type == "multitask_dense":
        return _load_from_dense(name, **kwargs)
    model_class = _class_of(config, name)
    if issubclass(model_class, BackboneMixin) and len(config.out_features) != 4:
        kwargs["out_features"] = _four_stages(config, name)
    if config.model_type == "timm_wrapper" and config.model_args:
        # timm 1.0.31 records an argument that transformers also gives.
        config.model_args = {name: value for name, value in config.model_args.items() if name != "num_classes"}
        kwargs["config"] = config
    # By default transformers takes the data type of the file, and decoders would train in half precision.
    options = {"dtype": torch.float32, **kwargs, **NO_ADAPTER, "output_loading_info": True}
    loaded: Any = model_class.from_pretrained(source, **options)
    model, info = loaded
    tensors = model.state_dict(keep_vars=True)
    encoder = view_encoder(model)
    kept = {id(tensor) for tensor in encoder.state_dict(keep_vars=True).values()}
    missing = [key for key in sorted(info["missing_keys"]) if id(tensors[key]) in kept and not FRESH.search(key)]
    if missing:
        raise ValueError(
            f"'{name}' lacks {len(missing)} weights of its encoder, such as {missing[:2]}, which would be random. "
            "Save or download it again, whole."
        )
    if config.model_type != "timm_wrapper":
        encoder.image_statistics = _image_statistics(source, kwargs)
    if is_embedded:
        encoder.config.embedded_name = name  # `peft_polyhistor.load` finds it by this name
    # PEFT records this name as the base model and looks it up on the Hub, where the embedded encoder does not exist.
    return _named(encoder, "" if is_embedded else name, kwargs.get("revision"))


def _named(encoder: StageEncoder, name: str, revision: str | None) -> StageEncoder:
    encoder.config.name_or_path = encoder.name_or_path = name
    encoder.revision = revision
    return encoder


def _load_from_dense(name: str, **kwargs: Any) -> StageEncoder:
    """Loads the encoder of a saved dense model."""
    from .multitask import MultiTaskDenseModel  # which imports this module

    model = MultiTaskDenseModel.from_pretrained(name, **{"dtype": torch.float32, **kwargs, **NO_ADAPTER})
    model.encoder.image_statistics = {key: getattr(model.config, key) for key in ("image_mean", "image_std")}
    return _named(model.encoder, name, kwargs.get("revision"))


def _image_statistics(source: str, kwargs: Mapping[str, Any]) -> dict[str, list[float]]:
    """Returns `image_mean` and `image_std` of the image processor of an encoder, for values in [0, 1].

    Raises:
        ValueError: The file of the image processor is damaged.
    """
    try:
        processor, _ = BaseImageProcessor.get_image_processor_dict(source, **kwargs)
    except OSError as error:
        if (Path(source) / PROCESSOR).is_file():
            raise ValueError(f"{Path(source) / PROCESSOR} is damaged ({error}). Write it again.") from error
        options = {name: kwargs[name] for name in ("cache_dir", "revision") if kwargs.get(name)}
        if not Path(source).is_dir() and try_to_load_from_cache(source, PROCESSOR, **options) is not NONE_ON_HUB:
            warnings.warn(
                f"Whether '{source}' has an image processor is unknown, because the Hub was not reached. Images are "
                "normalised with the mean and standard deviation of ImageNet.",
                stacklevel=3,
            )
        return {}
    # The factor of the values 0 ... 255, relative to 1 / 255.
    scale = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255
    if not processor.get("do_normalize", True):
        processor = {"image_mean": 0.0, "image_std": 1.0}
    found = {name: processor[name] for name in ("image_mean", "image_std") if processor.get(name) is not None}
    return {
        name: [number / scale for number in ([value] * 3 if isinstance(value, int | float) else value)]
        for name, value in found.items()
    }


def _four_stages(config: Any, name: str) -> list[str]:
    """Returns the names of the stages of a backbone; ValueError unless there are four besides a stem."""
    stages = [stage for stage in config.stage_names if stage != "stem"]
    if len(stages) != 4:
        raise ValueError(
            f"'{name}' has {len(stages)} stages, and a dense model takes the maps of four. Name them, such as "
            f"out_features={stages[len(stages) // 4 - 1 :: max(1, len(stages) // 4)][:4]}."
        )
    return stages


def _class_of(config: PreTrainedConfig, name: str) -> type[PreTrainedModel]:
    """Returns the class to load: for the known families the class that was saved, so that no weight is left over."""
    if config.model_type in SAVED_TYPES:
        plain = MODEL_MAPPING[type(config)]
        return getattr(transformers, (config.architectures or [""])[0], plain)  # type: ignore[arg-type]  # no tuple
    if config.model_type == "timm_backbone":
        raise TypeError(
            f"'{name}' holds a TimmBackbone, which transformers does not load from a folder. Save the model as a "
            "TimmWrapperModel, or put it into a dense model and save that."
        )
    # AutoBackbone would contact the Hub even for a folder.
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise TypeError(
            f"'{name}' holds a {config.model_type} model, which is no backbone in transformers. Choose one that "
            "yields the maps of four stages, e.g. Swin or PVT v2."
        )
    return MODEL_FOR_BACKBONE_MAPPING[type(config)]  # type: ignore[return-value]  # no tuple
