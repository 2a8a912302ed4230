# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Records the model that an adapter was trained on, and refuses any other architecture at load time."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..config import MultiTaskConfig
from ..models.blocks import find_blocks
from ..models.multitask import MultiTaskDenseModel
from ..models.multitask_config import IMAGES
from ..models.stages import StageEncoder
from .site import Site


# The keys that tell architectures apart. They do not tell apart two encoders of one architecture.
ARCHITECTURE = ("model_type", "blocks", "widths")
# The keys of `decoders` that tell how decoders were trained; the others are sizes.
TRAINED = ("decoder_dropout", "loss_weights", "tasks", *IMAGES)


def routed_module(model: nn.Module) -> nn.Module:
    """Returns the module whose calls name tasks: the encoder of a dense model, or else the model itself."""
    return next((module for module in model.modules() if isinstance(module, StageEncoder)), model)


def describe_base(model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
    """Returns the `made_for` of adapters at these sites.

    Its keys are `encoder` (the name of an embedded encoder, for which PEFT has no field), `model_type`, `blocks`
    (their number), `widths` (of the sites, in channels) and `decoders` (the `decoder_settings` of a dense model). A
    value that does not exist is `None`.
    """
    config = getattr(routed_module(model), "config", None)
    return {
        "encoder": getattr(config, "embedded_name", None),
        "model_type": getattr(config, "model_type", None),
        "blocks": len(find_blocks(model)),
        "widths": [site.width for site in sites],
        "decoders": model.config.decoder_settings() if isinstance(model, MultiTaskDenseModel) else None,
    }


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


def check_base(config: MultiTaskConfig, base: dict[str, Any]) -> None:
    """Raises ValueError if a saved adapter was made for another architecture, or for other norms of the stage maps."""
    made_for = config.made_for or base
    if any(made_for[key] != base[key] for key in ARCHITECTURE):
        theirs, ours = ({key: known[key] for key in ARCHITECTURE} for known in (made_for, base))
        raise ValueError(
            f"The adapter was made for {config.base_model_name_or_path or made_for['encoder'] or 'an encoder'} with "
            f"{theirs}, and this encoder has {ours}. Load it onto the encoder it was made for; to train a new adapter "
            "on this encoder, make a config with made_for=None."
        )
    norms = [known["decoders"]["shared_norms"] for known in (made_for, base) if known["decoders"]]
    if len(set(norms)) > 1:
        raise ValueError(
            f"The decoders saved with the adapter have shared_norms={norms[0]}, and the model's have "
            f"shared_norms={norms[1]}. Build the model with shared_norms={norms[0]}."
        )
