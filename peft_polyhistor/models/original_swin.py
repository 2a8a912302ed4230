# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Loads checkpoints of Swin's authors, supervised or self-supervised by MoBY (arXiv:2105.04553)."""

import math
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import SwinConfig, SwinModel

from .encoder import view_encoder
from .stages import StageEncoder


# Maps keys of `SwinStages` to keys of the authors.
ORIGINAL_NAMES = {
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^embeddings\.norm": "patch_embed.norm",
    r"^encoder\.": "",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.attention\.relative_position_bias\.": ".attn.",
    r"\.attention\.o_proj\.": ".attn.proj.",
    r"\.attention\.[qkv]_proj\.": ".attn.qkv.",
}
# Tensors that are recomputed, or that no stage map depends on: final norm, classifier, mask token of SimMIM.
UNUSED = re.compile(r"(^|\.)(relative_position_index|attn_mask)$|^(norm|head)\.|^mask_token$")
# Prefixes of data-parallel training, of other code bases, and of MoBY's online encoder.
PREFIXES = ("module.", "backbone.", "encoder.")
LARGEST_WINDOW = 32  # published Swins use up to 24; attention in a window grows with its fourth power


def load_original_swin(path: str | Path) -> StageEncoder:
    """Loads the encoder of a Swin checkpoint in the layout of github.com/microsoft/Swin-Transformer.

    The sizes of the encoder follow from the tensors. For a MoBY training checkpoint
    (github.com/SwinTransformer/Transformer-SSL), the online encoder (`encoder.`) is loaded, as its authors do. Only
    tensors are read: no code in the file runs.

    Args:
        path: A `.safetensors` file, or a file of `torch.save` with the tensors, bare or in a dict under `"model"` or
            `"state_dict"`.

    Raises:
        OSError: There is no such file.
        ValueError: The file is damaged, holds objects other than tensors and settings, or does not hold a Swin. The
            message names keys that are missing, unexpected or of a wrong shape.
    """
    tensors = _read(Path(os.path.expanduser(path)))
    if not any(key.startswith("patch_embed.") for key in tensors):
        raise ValueError(
            f"'{path}' holds no Swin under the keys of its authors: there is no 'patch_embed.proj.weight' among "
            f"{list(tensors)[:5]}... For a checkpoint of transformers or timm use load_encoder."
        )
    try:
        config = _config_of(tensors)
        with torch.device("meta"):  # no memory before the sizes are checked
            encoder = view_encoder(SwinModel(config, add_pooling_layer=False))
    except KeyError as error:
        raise ValueError(
            f"'{path}' is not a complete Swin: {error} is missing, and the sizes follow from it."
        ) from error
    except Exception as error:
        raise ValueError(
            f"'{path}' is not a Swin: the shapes of its tensors do not describe one ({error})."
        ) from error
    names = {key: _original_name(key) for key in encoder.state_dict()}
    missing = sorted(set(names.values()) - tensors.keys())
    unexpected = sorted(key for key in tensors.keys() - set(names.values()) if not UNUSED.search(key))
    if missing or unexpected:
        raise ValueError(
            f"'{path}' is not a Swin that transformers supports: missing keys {missing}, unexpected keys "
            f"{unexpected}. Absolute position embeddings, BatchNorm before the MLP and Swin V2 are not supported."
        )
    state = {key: _tensor_of(key, tensors[name]) for key, name in names.items()}
    wrong = [name for key, name in names.items() if state[key].shape != encoder.state_dict()[key].shape]
    if wrong:
        raise ValueError(f"'{path}' is not a Swin: the shapes of {wrong} do not fit those of its other tensors.")
    encoder = view_encoder(SwinModel(config, add_pooling_layer=False))
    encoder.load_state_dict(state)
    return encoder.eval()


def _read(path: Path) -> dict[str, Tensor]:
    checkpoint: Any  # the content of the file is checked below
    try:
        if path.suffix == ".safetensors":
            checkpoint = load_file(path)
        else:
            # Training checkpoints hold their settings as a CfgNode of yacs, which loads as a dict.
            with torch.serialization.safe_globals([(OrderedDict, "yacs.config.CfgNode")]):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"'{path}' is damaged, or holds more than tensors and settings: {error}") from error
    for holder in ("model", "state_dict"):
        checkpoint = checkpoint.get(holder, checkpoint) if isinstance(checkpoint, dict) else checkpoint
    is_dict = isinstance(checkpoint, dict) and all(isinstance(key, str) for key in checkpoint)
    if not is_dict or not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise ValueError(
            f"'{path}' holds a {type(checkpoint).__name__}, no dict of tensors, bare or as 'model' or 'state_dict'. "
            "Save the state dict of the model."
        )
    for prefix in PREFIXES:
        inner = {key.removeprefix(prefix): value for key, value in checkpoint.items() if key.startswith(prefix)}
        checkpoint = inner or checkpoint
    return checkpoint


def _config_of(tensors: dict[str, Tensor]) -> SwinConfig:
    """Derives the config from the tensors; raises KeyError with the name of a missing tensor."""
    patches = tensors["patch_embed.proj.weight"]  # (width, channels, patch, patch)
    depths: list[int] = []
    while f"layers.{len(depths)}.blocks.0.norm1.weight" in tensors:
        blocks = re.compile(rf"layers\.{len(depths)}\.blocks\.\d+\.norm1\.weight")
        depths.append(sum(bool(blocks.fullmatch(key)) for key in tensors))
    tables = [tensors[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(len(depths))]
    if not tables or len({len(table) for table in tables}) > 1:
        raise ValueError(
            f"All stages must have the same window; the tables of relative positions have "
            f"{[len(table) for table in tables]} rows. Use a checkpoint whose last map was not smaller than a window."
        )
    window = (math.isqrt(len(tables[0])) + 1) // 2  # (2 window - 1)^2 rows
    if window > LARGEST_WINDOW:
        raise ValueError(f"a window of {window}; up to {LARGEST_WINDOW} are read")
    return SwinConfig(
        patch_size=patches.shape[2],
        num_channels=patches.shape[1],
        embed_dim=patches.shape[0],
        depths=depths,
        num_heads=[table.shape[1] for table in tables],
        window_size=window,
        mlp_ratio=len(tensors["layers.0.blocks.0.mlp.fc1.weight"]) / len(patches),
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in tensors,
    )


def _original_name(key: str) -> str:
    for pattern, name in ORIGINAL_NAMES.items():
        key = re.sub(pattern, name, key)
    return key


def _tensor_of(key: str, tensor: Tensor) -> Tensor:
    """Returns the tensor of a key of `SwinStages`: one third of a joint tensor of queries, keys and values."""
    part = re.search(r"\.([qkv])_proj\.", key)
    return tensor.chunk(3)["qkv".index(part[1])] if part and tensor.ndim else tensor
