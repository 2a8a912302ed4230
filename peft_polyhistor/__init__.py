# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""PEFT methods that adapt one frozen hierarchical vision transformer to many dense tasks.

Importing this package registers its methods with PEFT: `get_peft_model` and `PeftModel.from_pretrained` then know
them. For their adapters, `PeftModel.load_adapter` raises a ValueError if the weights in a file belong to other tasks
or settings than those of an adapter of the same name, and `PeftModel.push_to_hub` writes the model card of `publish`.
"""

from . import peft_model, tasks  # noqa: F401  # `peft_model` replaces two methods of PeftModel
from .hub import TrainingRecord, load, publish
from .methods.adapter import AdapterConfig, LowRankAdapterConfig, SharedAdapterConfig
from .methods.bitfit import BitFitConfig, RelativeBiasConfig
from .methods.compacter import CompacterConfig, CompacterPlusPlusConfig, PhmConfig
from .methods.decoders import DecodersConfig
from .methods.hyperformer import HyperformerConfig
from .methods.lora import MultiTaskLoraConfig
from .methods.polyhistor import PolyhistorConfig, PolyhistorLiteConfig
from .methods.vmt_adapter import VmtAdapterConfig, VmtAdapterLiteConfig
from .methods.vpt import VptDeepConfig, VptShallowConfig
from .models.encoder import load_encoder, view_encoder
from .models.image_processor import DenseImageProcessor
from .models.multitask import MultiTaskDenseModel, MultiTaskDenseOutput
from .models.multitask_config import MultiTaskDenseConfig
from .models.original_swin import load_original_swin
from .models.stages import StageEncoder
from .registry import METHODS
from .tasks import *  # noqa: F403  # `tasks.__all__` lists the names
from .version import __version__


__all__ = [
    "METHODS",
    "AdapterConfig",
    "BitFitConfig",
    "CompacterConfig",
    "CompacterPlusPlusConfig",
    "DecodersConfig",
    "DenseImageProcessor",
    "HyperformerConfig",
    "LowRankAdapterConfig",
    "MultiTaskDenseConfig",
    "MultiTaskDenseModel",
    "MultiTaskDenseOutput",
    "MultiTaskLoraConfig",
    "PhmConfig",
    "PolyhistorConfig",
    "PolyhistorLiteConfig",
    "RelativeBiasConfig",
    "SharedAdapterConfig",
    "StageEncoder",
    "TrainingRecord",
    "VmtAdapterConfig",
    "VmtAdapterLiteConfig",
    "VptDeepConfig",
    "VptShallowConfig",
    "__version__",
    "load",
    "load_encoder",
    "load_original_swin",
    "publish",
    "view_encoder",
    *tasks.__all__,
]
