# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Learned weights of one site for each task: dense, low-rank or Kronecker matrices, biases and norms."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .bottleneck import BottleneckWeights
from .factors import kronecker_sum


class DenseMatrix(nn.Module):
    """A dense matrix per task. Parameters: tasks * rows * cols."""

    def __init__(self, tasks: int, rows: int, cols: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(tasks, rows, cols) / math.sqrt(cols))

    def zero(self) -> None:
        """Sets all matrices to zero, such that their gradient is not zero."""
        nn.init.zeros_(self.weight)

    def forward(self, tasks: Tensor) -> Tensor:
        """Maps indices `(tasks,)` to matrices `(tasks, rows, cols)`."""
        return self.weight[tasks]


class LowRankMatrix(nn.Module):
    """A product of two factors per task. Parameters: tasks * rank * (rows + cols)."""

    def __init__(self, tasks: int, rows: int, cols: int, rank: int):
        super().__init__()
        self.left = nn.Parameter(torch.randn(tasks, rows, rank) / math.sqrt(rank))
        self.right = nn.Parameter(torch.randn(tasks, rank, cols) / math.sqrt(cols))

    def zero(self) -> None:
        nn.init.zeros_(self.left)

    def forward(self, tasks: Tensor) -> Tensor:
        return self.left[tasks] @ self.right[tasks]


class KroneckerMatrix(nn.Module):
    """A sum of Kronecker products per task, sum_i rule_i (x) kernel_i (PHM, arXiv:2102.08597, Eq. 4).

    Args:
        tasks: Number of tasks.
        rows, cols: Size of the matrix; multiples of `order`.
        order: Number of summands, and side of the square rules.
        own_rule: Learn rules for this matrix; otherwise each call passes them.
        rank: Rank of the kernels (Compacter, arXiv:2106.04647, Eq. 8); `None` for dense kernels.

    Parameters, per task: rows * cols / order, or with a rank rank * (rows + cols); plus order^3 for own rules.
    """

    def __init__(self, tasks: int, rows: int, cols: int, order: int, own_rule: bool = True, rank: int | None = None):
        super().__init__()
        self.order = order
        self.rule = new_rule(tasks, order) if own_rule else None
        shape = (tasks * order, rows // order, cols // order)
        self.kernels = DenseMatrix(*shape) if rank is None else LowRankMatrix(*shape, rank)

    def zero(self) -> None:
        self.kernels.zero()

    def forward(self, tasks: Tensor, *shared: Tensor) -> Tensor:
        """Maps indices `(tasks,)`, and shared rules `(tasks, order, order, order)` unless the rules are its own."""
        summands = torch.arange(self.order, device=tasks.device)
        kernels = self.kernels((tasks[:, None] * self.order + summands).flatten())
        [rule] = shared if self.rule is None else [self.rule[tasks]]
        return kronecker_sum(rule, kernels.unflatten(0, (len(tasks), self.order)))


Matrix = DenseMatrix | LowRankMatrix | KroneckerMatrix


def new_rule(tasks: int, order: int) -> nn.Parameter:
    """Draws the rules `(tasks, order, order, order)` of a `KroneckerMatrix` from N(0, 1 / order)."""
    return nn.Parameter(torch.randn(tasks, order, order, order) / math.sqrt(order))


class TaskWeights(nn.Module):
    """The learned adapter weights of one site for each task.

    Args:
        tasks: Number of tasks.
        width, bottleneck: Channels of the adapter, outside and inside.
        make_matrix: Makes a module of matrices from `(tasks, rows, cols)`.
        identity: Start with an adapter output of exactly zero.

    Parameters, per task: those of the matrices down and up, plus bottleneck + 3 width.
    """

    def __init__(self, tasks: int, width: int, bottleneck: int, make_matrix: Callable[..., Matrix], identity: bool):
        super().__init__()
        self.down = make_matrix(tasks, bottleneck, width)
        self.up = make_matrix(tasks, width, bottleneck)
        self.down_bias = nn.Parameter(torch.zeros(tasks, bottleneck))
        self.up_bias = nn.Parameter(torch.zeros(tasks, width))
        self.norm_weight = nn.Parameter(torch.ones(tasks, width))
        self.norm_bias = nn.Parameter(torch.zeros(tasks, width))
        if identity:
            self.up.zero()

    @torch.no_grad()
    def assign(self, weights: BottleneckWeights) -> None:
        """Copies weights of the same number of tasks into this module, whose matrices must be dense."""
        for name, values in weights._asdict().items():
            self.get_parameter(f"{name}.weight" if name in ("down", "up") else name).copy_(values)

    def forward(self, tasks: Tensor, *shared: Tensor) -> BottleneckWeights:
        """Maps indices `(tasks,)` to weights; passes `shared` to the matrices."""
        return BottleneckWeights(
            down=self.down(tasks, *shared),
            down_bias=self.down_bias[tasks],
            up=self.up(tasks, *shared),
            up_bias=self.up_bias[tasks],
            norm_weight=self.norm_weight[tasks],
            norm_bias=self.norm_bias[tasks],
        )


class SiteGenerators(nn.ModuleList):
    """A generator with one module per site, which maps indices `(tasks,)` to its `BottleneckWeights`."""

    def forward(self, tasks: Tensor, *shared: Tensor) -> list[BottleneckWeights]:
        return [site(tasks, *shared) for site in self]
