# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""One view of a hierarchical vision transformer: the four maps of its stages."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoBackbone, AutoConfig, PreTrainedConfig, SwinModel
from transformers.backbone_utils import BackboneMixin


class StageEncoder(nn.Module):
    """An encoder as the dense model sees it: pictures to four maps, coarser from stage to stage.

    Attributes:
        config: The encoder's own config, enough to build it again.
        widths: Channels of the four maps.
        strides: Pixels of the input per step of each map.
        needs_norm: The maps come out of the residual stream without a norm.
    """

    config: PreTrainedConfig
    widths: list[int]
    strides: list[int]
    needs_norm: bool
    base_model_prefix = ""  # PEFT asks every module for it that has a config of transformers

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        """`(batch, 3, height, width)` to four maps `(batch, width of stage, height / stride, width / stride)`."""
        raise TypeError(f"{type(self).__name__} must define `stage_maps`, which makes the maps of its family.")

    def forward(self, pixel_values: Tensor, tasks: Sequence[str] | None = None) -> Any:
        """The four maps; with `tasks`, a dict of them by task, for which an unadapted encoder needs one pass."""
        maps = self.stage_maps(pixel_values)
        return maps if tasks is None else dict.fromkeys(tasks, maps)


class SwinStages(StageEncoder):
    """transformers' Swin, without the final norm and pooling, which no stage map passes through.

    Note:
        `SwinModel` clamps window and shift for good after one small picture, and `SwinBackbone` shifts windows even
        where one window covers the map, as no pretrained Swin did. Here every pass fits the shift to its own map: none
        where the map is no larger than a window, and windows keep their size (smaller maps are padded). Where sides
        of all maps exceed the window, or equal it, this is what SwinModel, timm and the original code compute.
    """

    needs_norm = True

    def __init__(self, model: SwinModel):
        super().__init__()
        self.config = model.config
        self.embeddings = model.embeddings
        self.encoder = model.encoder
        self.widths = [self.config.embed_dim * 2**i for i in range(len(self.config.depths))]
        patch = self.embeddings.patch_embeddings.patch_size[0]
        self.strides = [patch * 2**i for i in range(len(self.widths))]
        for stage in self.encoder.layers:
            for i, layer in enumerate(stage.blocks):
                layer.window_size = self.config.window_size
                shift = 0 if i % 2 == 0 else self.config.window_size // 2
                layer.set_shift_and_window_size = partial(_fit_shift, layer, shift)

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        embedding, grid = self.embeddings(pixel_values, interpolate_pos_encoding=True)
        output = self.encoder(
            embedding, grid, output_hidden_states=True, output_hidden_states_before_downsampling=True, return_dict=True
        )
        return output.reshaped_hidden_states[1:]  # the first is the embedding


def _fit_shift(layer: nn.Module, shift: int, grid: tuple[int, int]) -> None:
    layer.shift_size = 0 if min(grid) <= layer.window_size else shift


class BackboneStages(StageEncoder):
    """Any backbone of transformers that yields four maps; its own norms, if it has any, stay part of it."""

    needs_norm = False

    def __init__(self, backbone: BackboneMixin):
        super().__init__()
        self.config = backbone.config
        self.backbone = backbone
        self.widths = list(backbone.channels)
        probe = deepcopy(backbone).eval()  # a forward pass may change a model, as it does BatchNorm's statistics
        with torch.no_grad():
            size = 64
            parameter = next(probe.parameters())
            picture = torch.zeros(1, 3, size, size, dtype=parameter.dtype, device=parameter.device)
            maps = probe(picture).feature_maps
        if [stage_map.shape[1] for stage_map in maps] != self.widths:
            raise ValueError(
                f"{type(backbone).__name__} yields maps {[tuple(stage_map.shape) for stage_map in maps]} of a picture "
                f"of {size} x {size} pixels; maps (batch, channels, height, width) with {self.widths} channels are "
                "needed. Wrap the model in your own subclass of StageEncoder."
            )
        self.strides = [size // stage_map.shape[-1] for stage_map in maps]

    def stage_maps(self, pixel_values: Tensor) -> Sequence[Tensor]:
        return self.backbone(pixel_values).feature_maps


def view_encoder(model: nn.Module) -> StageEncoder:
    """The stages of any encoder: transformers' Swin in each of its classes, or a backbone of transformers.

    Raises:
        TypeError: The model is neither.
        ValueError: It has not four stages.
    """
    if isinstance(model, StageEncoder):
        return model
    swin = getattr(model, "swin", model)
    if isinstance(swin, SwinModel):
        encoder: StageEncoder = SwinStages(swin)
    elif isinstance(model, BackboneMixin):
        encoder = BackboneStages(model)
    else:
        raise TypeError(
            f"{type(model).__name__} is no encoder of a known family. Give a Swin of transformers (SwinModel, "
            "SwinBackbone or a model with one), a backbone of transformers with four `out_features` (AutoBackbone), "
            "or your own subclass of StageEncoder."
        )
    if len(encoder.widths) != 4:
        raise ValueError(
            f"A dense model needs the maps of four stages; {type(model).__name__} yields {len(encoder.widths)} "
            f"(widths {encoder.widths}). Choose another encoder, or name four stages in its `out_features`."
        )
    return encoder


def build_encoder(config: PreTrainedConfig) -> StageEncoder:
    """An encoder with fresh weights; the same errors as `view_encoder`."""
    if config.model_type == "swin":
        return view_encoder(SwinModel(config, add_pooling_layer=False))
    return view_encoder(AutoBackbone.from_config(config))


ASSETS = Path(__file__).parent.parent / "assets"


def load_encoder(name: str, **kwargs: Any) -> StageEncoder:
    """A pretrained encoder.

    Args:
        name: `"swin-micro"`, which comes with this package (1.3 M parameters, see its README in `assets`), or a folder
            or Hub id of transformers.
        **kwargs: For `from_pretrained`, e.g. `revision`.

    Raises:
        OSError: There is no such folder or Hub repository.
        TypeError, ValueError: As in `view_encoder`.
    """
    embedded = {file.parent.name: file.parent for file in ASSETS.glob("*/config.json")}
    if name not in embedded and name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise FileNotFoundError(f"There is no folder '{name}'. Give one, a Hub id, or one of {list(embedded)}.")
    source = str(embedded.get(name, name))
    config = AutoConfig.from_pretrained(source, **kwargs)
    if config.model_type == "swin":
        # In the class it was saved from, so that no weight is left over.
        model_class = getattr(transformers, (config.architectures or ["SwinModel"])[0], SwinModel)
        encoder = view_encoder(model_class.from_pretrained(source, **kwargs))
    else:
        # Not AutoBackbone, which asks the Hub even for a folder. By name: some families count a stem, some do not.
        if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
            raise TypeError(
                f"'{name}' holds a {config.model_type} model, which is no backbone in transformers. Choose one that "
                "yields the maps of four stages, e.g. Swin or PVT v2."
            )
        stages = [f"stage{i}" for i in range(1, 5)]
        backbone_class = MODEL_FOR_BACKBONE_MAPPING[type(config)]
        encoder = view_encoder(backbone_class.from_pretrained(source, out_features=stages, **kwargs))
    # What PEFT records as the base model, and looks for on the Hub: the embedded encoder is not there.
    encoder.config.name_or_path = "" if name in embedded else name
    return encoder
