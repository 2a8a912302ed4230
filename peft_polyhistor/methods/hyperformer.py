# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Hyperformer (arXiv:2106.04489), as applied to vision transformers in Polyhistor (arXiv:2210.03265)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_positive
from ..config import BottleneckConfig, setting
from ..layers.bottleneck import BottleneckTuner, BottleneckWeights
from ..layers.factors import HIDDEN, RAW_EMBEDDING, SMALL_STD, Hypernetworks, Projector, around_one
from ..registry import register
from ..tuner.site import Site


@dataclass
class HyperformerConfig(BottleneckConfig):
    """Config of Hyperformer: each site has hypernetworks that generate dense weights (arXiv:2106.04489, Sec. 2.2).

    Tables 1 and 6 of Polyhistor (arXiv:2210.03265) use `sublayers=["attention", "feed_forward"]` and a reduction
    factor of 8; its other tables use the defaults.
    """

    method: ClassVar[str] = "HYPERFORMER"

    embedding_dim: int = setting(64, "Length of a projected task embedding, at least 1.", check_positive)

    def make_generator(self, sites: list[Site]) -> nn.Module:
        shapes: list[dict[str, tuple[int, ...]]] = []
        for site in sites:
            width, bottleneck = site.width, self.bottleneck_of(site.width)
            shapes.append(
                {
                    "down": (bottleneck, width),
                    "down_bias": (bottleneck,),
                    "up": (width, bottleneck),
                    "up_bias": (width,),
                    "norm_weight": (width,),
                    "norm_bias": (width,),
                }
            )
        blocks = list(dict.fromkeys(site.block for site in sites))
        projector_of = [blocks.index(site.block) for site in sites]
        return Hyperformer(len(self.tasks), projector_of, shapes, self.embedding_dim, self.init_weights)


class Hyperformer(nn.Module):
    """Generates each adapter weight as a linear function of the projected task embedding.

        W(t, l) = W_l v + b_l,    v = projector_l(z_t)    (arXiv:2106.04489, Sec. 2.2)

    Each block has its own projector, and each site has its own hypernetworks.

    Note:
        As in the parameter counts of Polyhistor, there is no norm at the end of the projector. The weight of the norm
        is one plus the generated value.

    Args:
        tasks: Number of tasks.
        projector_of: For each site, the index of the projector of its block.
        shapes: For each site, the shapes of its weights by name.
        embedding_dim: Length of v.
        identity: Start with an adapter output of exactly zero.
    """

    def __init__(
        self,
        tasks: int,
        projector_of: list[int],
        shapes: list[dict[str, tuple[int, ...]]],
        embedding_dim: int,
        identity: bool,
    ):
        super().__init__()
        self.task_embedding = nn.Parameter(torch.randn(tasks, RAW_EMBEDDING))
        self.projector_of = projector_of
        self.projectors = nn.ModuleList(
            Projector(RAW_EMBEDDING, HIDDEN, embedding_dim, tasks) for _ in range(max(projector_of) + 1)
        )
        self.hypernetworks = nn.ModuleList()
        for shape in shapes:
            stds = dict.fromkeys(shape, SMALL_STD) | {"down": 1 / math.sqrt(3 * shape["down"][1])}
            stds |= {"up": 0.0, "up_bias": 0.0} if identity else {}
            self.hypernetworks.append(Hypernetworks(embedding_dim, shape, tasks, stds))

    def forward(self, tasks: Tensor) -> list[BottleneckWeights]:
        """Maps indices `(tasks,)` to the weights of each site."""
        raw = self.task_embedding[tasks]
        embeddings = [projector(raw) for projector in self.projectors]
        return [
            around_one(BottleneckWeights(**hypernetworks(embeddings[block])))
            for block, hypernetworks in zip(self.projector_of, self.hypernetworks, strict=True)
        ]


class HyperformerModel(BottleneckTuner):
    """PEFT tuner of Hyperformer."""

    prefix = "hyperformer_"


register(HyperformerConfig.method, HyperformerConfig, HyperformerModel)
