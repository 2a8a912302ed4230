# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Records the model that an adapter was trained on.

At load time, another architecture is an error, and other weights of the same architecture give a warning.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import MultiTaskConfig
from ..models.blocks import Block, find_blocks
from ..models.encoder import embedded_name
from ..models.multitask import MultiTaskDenseModel
from ..models.multitask_config import IMAGES
from ..models.stages import StageEncoder
from .site import Site


# The keys that tell architectures apart; `block_sizes` tells apart the weights of one architecture.
ARCHITECTURE = ("model_type", "blocks", "widths")
# Relative difference of the sizes of equal weights. Rounding to bfloat16 changes the size of 10,000 weights by 1e-5.
SIZE_TOLERANCE = 2e-4
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# The settings of a task that its outputs depend on.
MEANINGS = "kind", "classes", "objective", "unit"
# The keys of `decoders` that tell how decoders were trained; the others are sizes.
TRAINED = ("decoder_dropout", "loss_weights", "tasks", *IMAGES)


def routed_module(model: nn.Module) -> nn.Module:
    """Returns the module whose calls name tasks: the first `StageEncoder` in the model, or else the model itself.

    This is the encoder of a dense model, or one in a model of your own, whose `forward` hands tasks on to it.
    """
    return next((module for module in model.modules() if isinstance(module, StageEncoder)), model)


def describe_base(model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
    """Returns the `made_for` of adapters at these sites.

    Its keys are `encoder` (the name of an embedded encoder, for which PEFT has no field), `model_type`, `blocks`
    (their number), `widths` (of the sites, in channels), `block_sizes` (see `measure_blocks`) and `decoders` (the
    `decoder_settings` of a dense model). A value that does not exist is `None`.
    """
    config, blocks = getattr(routed_module(model), "config", None), find_blocks(model)
    name = getattr(config, "embedded_name", None) or embedded_name(getattr(config, "name_or_path", None))
    return {
        "encoder": name,
        "model_type": getattr(config, "model_type", None),
        "blocks": len(blocks),
        "widths": [site.width for site in sites],
        "block_sizes": measure_blocks(model, blocks),
        "decoders": model.config.decoder_settings() if isinstance(model, MultiTaskDenseModel) else None,
    }


def measure_blocks(model: nn.Module, blocks: Sequence[Block]) -> list[float] | None:
    """Returns the root mean square of the linear weights of each block, which hardly depends on their precision.

    `None` if it is not known: without blocks, or if weights are quantised, sharded, offloaded or not loaded yet.
    """
    sizes = []
    for block in blocks:
        named = model.get_submodule(block.name).named_modules()
        weights = [
            module.weight for name, module in named if type(module) is nn.Linear and "modules_to_save" not in name
        ]
        if not weights or not all(map(_is_plain, weights)):
            return None
        squares = sum(float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float64)) ** 2 for weight in weights)
        sizes.append(float(f"{math.sqrt(squares / sum(map(Tensor.numel, weights))):.6g}"))
    return sizes or None


def _is_plain(weight: Tensor) -> bool:
    # Quantised and sharded weights are of subclasses, of types of fewer bits, or empty.
    is_own = type(weight) is nn.Parameter and type(weight.data) is Tensor
    return is_own and weight.dtype in PLAIN and weight.numel() > 0 and not weight.is_meta


def keep_sizes(base: dict[str, Any], saved: MultiTaskConfig, is_frozen: bool) -> dict[str, Any]:
    """Returns the `made_for` of an adapter on the model `base` that was saved with the config `saved`.

    The sizes of the blocks are those of the training, until the adapter trains on where they are known.
    """
    sizes = (saved.made_for or {}).get("block_sizes")
    return base | {"block_sizes": sizes} if sizes and (is_frozen or not base.get("block_sizes")) else base


def keep_settings(own: dict[str, Any], saved: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the record of the decoders of an adapter that was loaded onto another dense model.

    Args:
        own: The `decoder_settings` of the model, which decide the sizes.
        saved: The record that the adapter was saved with. Its settings of the training stay where they are known.
            `None` for an adapter without decoders, which stays so.
    """
    if saved is None:
        return None
    return own | {key: saved[key] for key in TRAINED if saved.get(key) is not None}


def _meanings(tasks: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Returns the settings of own tasks that change the meaning of outputs, by task."""
    rows = [row for row in tasks if isinstance(row, dict)]
    return {task: {key: settings.get(key) for key in MEANINGS} for row in rows for task, settings in row.items()}


def check_base(config: MultiTaskConfig, base: dict[str, Any]) -> None:
    """Compares the encoder that a saved adapter was made for with the model at hand, and warns of other weights.

    Raises:
        ValueError: The adapter was made for another architecture, for other norms of the stage maps, or for a task
            that means something else here.
    """
    made_for = config.made_for or base
    name = config.base_model_name_or_path or made_for["encoder"] or "an encoder"
    if any(made_for[key] != base[key] for key in ARCHITECTURE):
        theirs, ours = ({key: known[key] for key in ARCHITECTURE} for known in (made_for, base))
        raise ValueError(
            f"The adapter was made for {name} with {theirs}, and this encoder has {ours}. Load it onto the encoder it "
            "was made for; to train a new adapter on this encoder, make a config with made_for=None."
        )
    pairs = zip(made_for.get("block_sizes") or [], base["block_sizes"] or [], strict=False)
    if any(not math.isclose(*pair, rel_tol=SIZE_TOLERANCE) for pair in pairs):
        warnings.warn(
            f"The adapter was made for {name} with other weights than this encoder has, so its outputs mean nothing "
            "here. Load it onto the weights it was made for: the same revision, or the same version of an encoder "
            "that comes with a package.",
            stacklevel=1,  # one place for all ways to load, so that Python shows it once
        )
    theirs, ours = (_meanings((known["decoders"] or {}).get("tasks", [])) for known in (made_for, base))
    for task in theirs.keys() & ours.keys():
        if theirs[task] != ours[task]:
            raise ValueError(
                f"The adapter was trained for a task '{task}' with {theirs[task]}, and here the task has "
                f"{ours[task]}, so outputs would mean something else. Register it as in the training, or a new name."
            )
    norms = [known["decoders"]["shared_norms"] for known in (made_for, base) if known["decoders"]]
    if len(set(norms)) > 1:
        raise ValueError(
            f"The decoders saved with the adapter have shared_norms={norms[0]}, and the model's have "
            f"shared_norms={norms[1]}. Build the model with shared_norms={norms[0]}."
        )
