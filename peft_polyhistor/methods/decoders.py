# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of decoders: the decoders of a dense model train, and its encoder stays frozen."""

from dataclasses import dataclass
from typing import ClassVar

from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from ..config import MultiTaskConfig
from ..models.blocks import Block
from ..models.multitask import MultiTaskDenseModel
from ..registry import register
from ..tuner.site import Site
from ..tuner.tuner import AdapterTuner


@dataclass
class DecodersConfig(MultiTaskConfig):
    """Config of fine-tuning decoders: only the decoders train and are saved.

    There are no adapters: leave out `target_modules`, `exclude_modules` and `layers_to_transform`.
    """

    method: ClassVar[str] = "MTL_DECODERS"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules", "layers_to_transform"):
            if getattr(self, name) not in (None, DUMMY_TARGET_MODULES):
                raise ValueError(
                    f"{self.method} adapts no module, got `{name}` {getattr(self, name)!r}. Leave it out."
                )
        self.target_modules = DUMMY_TARGET_MODULES  # PEFT's constant for no modules

    def make_generator(self, sites: list[Site]) -> nn.Module:
        return nn.Module()  # is never called, as there are no sites


class DecodersModel(AdapterTuner[DecodersConfig]):
    """PEFT tuner of the fine-tuning of decoders."""

    prefix = "mtl_decoders_"

    def _choose_sites(self, model: nn.Module, config: DecodersConfig) -> list[Site]:
        if not isinstance(model, MultiTaskDenseModel):
            raise ValueError(
                f"{config.method} trains the decoders of a MultiTaskDenseModel, got {type(model).__name__} without "
                "decoders. Build a model with `MultiTaskDenseModel.from_encoder`."
            )
        return []

    def delete_adapter(self, adapter_name: str) -> None:
        active = [name for name in self.active_adapters if name != adapter_name]
        super().delete_adapter(adapter_name)
        # PEFT asks its layers which adapter is active afterwards, and there are no layers.
        if active or self.peft_config:
            self.set_adapter(active or list(self.peft_config)[:1])

    def known_sites(self, model: nn.Module, blocks: list[Block], config: DecodersConfig) -> list[Site]:
        return []

    def site_at(self, module: nn.Module, name: str, index: int, config: DecodersConfig) -> Site:
        raise ValueError(f"{config.method} adapts no module, got '{name}'.")


register(DecodersConfig.method, DecodersConfig, DecodersModel)
