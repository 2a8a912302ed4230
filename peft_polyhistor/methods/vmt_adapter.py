# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""VMT-Adapter and VMT-Adapter-Lite (arXiv:2312.08733, AAAI 2024): one pass of the encoder serves all tasks.

Note:
    The paper leaves details open. It states: all tasks share an adapter in parallel to the feed-forward block, whose
    output continues through the encoder; a small knowledge extraction module per task makes features only for the
    decoder of its task; in -Lite, the projections down and up share their parameters; and the parameters are 1.0 % and
    0.36 % of those of four single-task encoders (Swin-T: 1.10 M and 0.40 M). This implementation assumes: the module
    is a scale and a shift of the bottleneck, and the projection up of the adapter makes the features; the features of
    the blocks of a stage are added to the stage map; in -Lite, up is the transpose of down with its rows scaled by a
    learned gate, which starts at zero.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import BottleneckConfig, setting
from ..layers.bottleneck import (
    BottleneckTuner,
    BottleneckWeights,
    ResidualLayer,
    ResidualSite,
    from_bottleneck,
    to_bottleneck,
)
from ..layers.matrices import DenseMatrix, SiteGenerators, TaskWeights
from ..models.blocks import Block
from ..models.stages import StageEncoder
from ..registry import register
from ..tuner.provenance import routed_module
from ..tuner.site import Site


SHARINGS = ("none", "transpose")


@dataclass
class VmtAdapterConfig(BottleneckConfig):
    """Config of VMT-Adapter. It takes neither `target_modules` nor `placement="serial"`.

    Parameters, per site of width d and bottleneck n, with T tasks: 2 d n + n + 3 d + 2 n T; with shared projections
    d n + 2 n + 3 d + 2 n T.
    """

    method: ClassVar[str] = "VMT_ADAPTER"
    shares_pass: ClassVar[bool] = True

    reduction_factor: int = 4
    sharing: str = setting(
        "none", 'Parameters that down and up share: `"none"`, or `"transpose"` for up = gate * down^T.'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sharing not in SHARINGS:
            raise ValueError(f"`sharing` must be one of {list(SHARINGS)}, got {self.sharing!r}.")
        if self.placement != "parallel":
            raise ValueError(f"`placement` of {self.method} must be 'parallel', got {self.placement!r}.")
        if self.target_modules is not None:
            raise ValueError(
                f"{self.method} adds the features of a task to the stage maps of a known encoder and takes no "
                f"`target_modules`, got {self.target_modules!r}. Use `layers_to_transform` or `exclude_modules`."
            )

    def make_generator(self, sites: list[Site]) -> nn.Module:
        return SiteGenerators(
            KnowledgeExtraction(
                len(self.tasks), site.width, self.bottleneck_of(site.width), self.sharing, self.init_weights
            )
            for site in sites
        )


@dataclass
class VmtAdapterLiteConfig(VmtAdapterConfig):
    """Config of VMT-Adapter-Lite: VMT-Adapter with shared projections; its bottleneck comes nearest to 0.36 %."""

    method: ClassVar[str] = "VMT_ADAPTER_LITE"

    reduction_factor: int = 6
    sharing: str = "transpose"


class KnowledgeWeights(NamedTuple):
    """Weights of one site: the shared adapter, and scale and shift of the features of each task."""

    adapter: BottleneckWeights  # with one set of weights
    scale: Tensor  # (tasks, bottleneck)
    shift: Tensor  # (tasks, bottleneck)


class TiedWeights(nn.Module):
    """The adapter weights of one site for all tasks. up is the transpose of down, with rows scaled by a gate.

    With `identity`, the gate starts at zero, so that the output of the adapter is exactly zero.

    Parameters: width * bottleneck + 2 bottleneck + 3 width.
    """

    def __init__(self, width: int, bottleneck: int, identity: bool):
        super().__init__()
        self.down = DenseMatrix(1, bottleneck, width)
        self.gate = nn.Parameter(torch.zeros(1, bottleneck) if identity else torch.randn(1, bottleneck))
        self.down_bias = nn.Parameter(torch.zeros(1, bottleneck))
        self.up_bias = nn.Parameter(torch.zeros(1, width))
        self.norm_weight = nn.Parameter(torch.ones(1, width))
        self.norm_bias = nn.Parameter(torch.zeros(1, width))

    def forward(self, sets: Tensor) -> BottleneckWeights:
        """Maps the index `(1,)` of the one set to its weights."""
        down = self.down(sets)
        up = (self.gate[..., None] * down).mT
        return BottleneckWeights(down, self.down_bias, up, self.up_bias, self.norm_weight, self.norm_bias)


class KnowledgeExtraction(nn.Module):
    """The generator of one site: the adapter and the knowledge extraction of each task.

    With `identity`, the output of the adapter starts at exactly zero.
    """

    def __init__(self, tasks: int, width: int, bottleneck: int, sharing: str, identity: bool):
        super().__init__()
        if sharing == "transpose":
            self.adapter: TiedWeights | TaskWeights = TiedWeights(width, bottleneck, identity)
        else:
            self.adapter = TaskWeights(1, width, bottleneck, DenseMatrix, identity)
        self.scale = nn.Parameter(torch.ones(tasks, bottleneck))
        self.shift = nn.Parameter(torch.zeros(tasks, bottleneck))

    def forward(self, tasks: Tensor) -> KnowledgeWeights:
        """Maps indices `(tasks,)` to weights."""
        return KnowledgeWeights(self.adapter(tasks.new_zeros(1)), self.scale[tasks], self.shift[tasks])


@dataclass(frozen=True)
class KnowledgeSite(ResidualSite):
    """The site of a `KnowledgeLayer`."""

    stage: int  # index of the stage of its block


class KnowledgeLayer(ResidualLayer):
    """Adds the adapter to the output of the sublayer, and the features of each task to the features of its stage."""

    site: KnowledgeSite
    obstacle = "make features for the decoders of the tasks"

    def adapt(self, x: Tensor, output: Tensor, weights: list[tuple[Any, float]]) -> Tensor:
        """Adds the adapter of `x` to `output`, both `(batch, tokens, width)`."""
        for w, dropout in weights:
            hidden = to_bottleneck(x, w.adapter, dropout, self.eps)  # (1, tokens of the batch, bottleneck)
            output = output + from_bottleneck(hidden, w.adapter).view_as(output).to(output.dtype)
            of_tasks = hidden * w.scale[:, None] + w.shift[:, None]
            features = F.linear(of_tasks, w.adapter.up[0], w.adapter.up_bias[0])
            self.leave_features(features.reshape(features.shape[0], x.shape[0], -1, self.site.width))
        return output

    def leave_features(self, features: Tensor) -> None:
        """Adds features `(tasks, batch, tokens, width)` to the features of other blocks of the stage."""
        stages = self.router.current_route().features
        stages[self.site.stage] = stages[self.site.stage] + features if self.site.stage in stages else features


class VmtAdapterModel(BottleneckTuner):
    """PEFT tuner of VMT-Adapter."""

    prefix = "vmt_adapter_"
    residual_layer = KnowledgeLayer

    def known_sites(self, model: nn.Module, blocks: list[Block], config: BottleneckConfig) -> list[Site]:
        encoder = routed_module(model)
        if not isinstance(encoder, StageEncoder):
            raise ValueError(
                f"{config.method} adds features to stage maps, and {type(model).__name__} has no stage maps. Adapt a "
                "MultiTaskDenseModel, or the StageEncoder that `view_encoder` makes from an encoder."
            )
        widths = list(dict.fromkeys(block.width for block in blocks))  # a stage consists of all blocks of one width
        if widths != list(encoder.widths):
            raise ValueError(
                f"{config.method} tells stages apart by the widths of their blocks, got blocks of widths {widths} in "
                f"stages of widths {list(encoder.widths)}. Choose an encoder whose stages differ in width."
            )
        return [
            KnowledgeSite(**vars(site) | {"widens": None}, stage=widths.index(site.width))
            for site in super().known_sites(model, blocks, config)
        ]


class VmtAdapterLiteModel(VmtAdapterModel):
    """PEFT tuner of VMT-Adapter-Lite."""

    prefix = "vmt_adapter_lite_"


register(VmtAdapterConfig.method, VmtAdapterConfig, VmtAdapterModel)
register(VmtAdapterLiteConfig.method, VmtAdapterLiteConfig, VmtAdapterLiteModel)
