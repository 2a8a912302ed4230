# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Dense decoders: one all-MLP head per task over the four stage maps (SegFormer, arXiv:2105.15203, Sec. 3.2)."""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .onload import onloaded


class DenseDecoder(nn.Module):
    """Turns the four stage maps into the logits of one task, at the resolution of the first map.

        classifier(dropout(relu(BatchNorm(fuse(concat_i upsample(project_i(norm_i(map_i)))))))

    All operations before BatchNorm are linear, and bilinear weights sum to one. So each projection is first multiplied
    with its slice of the fusing convolution, applied at the resolution of its own stage, upsampled and summed. This is
    the same function of the same parameters, without a map of 4 * width channels at the finest resolution.

    Args:
        widths: Channels of the four maps.
        channels: Channels of the output.
        width: Channels inside the decoder.
        dropout: Probability of zeroing a whole channel before the classifier.
        norms: Begin with a LayerNorm over the channels of each map, as the maps of Swin need.

    Parameters: sum_i (C_i + 1) width + 4 width^2 + 2 width + (width + 1) channels, plus 2 sum_i C_i with norms.
    """

    def __init__(self, widths: Sequence[int], channels: int, width: int, dropout: float, norms: bool):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(c) if norms else nn.Identity() for c in widths)
        projections = nn.ModuleList(nn.Linear(c, width) for c in widths)
        self.projections: Sequence[nn.Linear] = projections  # type: ignore[assignment]  # a ModuleList has no item type
        self.fuse = nn.Conv2d(len(widths) * width, width, kernel_size=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, channels, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps four stage maps `(batch, C_i, h_i, w_i)` to logits `(batch, channels, h_1, w_1)`."""
        with onloaded(self):
            weights, bias = self._compose()
        tokens = [norm(stage_map.movedim(1, -1)) for norm, stage_map in zip(self.norms, maps, strict=True)]
        fused = F.linear(tokens[0], weights[0], bias).movedim(-1, 1)
        for coarser, weight in zip(tokens[1:], weights[1:], strict=True):
            projected = F.linear(coarser, weight).movedim(-1, 1)
            fused = fused + F.interpolate(projected, size=fused.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(self.dropout(F.relu(self.batch_norm(fused))))

    @torch.no_grad()
    def copy_from(self, other: "DenseDecoder", norms: Iterable[nn.Module]) -> None:
        """Makes a fresh decoder compute what another one does on maps that `norms` normalise.

        Scales and shifts of the norms become part of the projections, so that it does not matter whether norms are
        shared. The norms of this decoder stay fresh.
        """
        for own, projection, norm in zip(self.projections, other.projections, norms, strict=True):
            weight: Tensor = projection.weight
            bias: Tensor = projection.bias
            if isinstance(norm, nn.LayerNorm):
                weight, bias = weight * norm.weight, bias + weight @ norm.bias
            own.weight.copy_(weight)
            own.bias.copy_(bias)
        for name in ("fuse", "batch_norm", "classifier"):
            getattr(self, name).load_state_dict(getattr(other, name).state_dict())

    def _compose(self) -> tuple[list[Tensor], Tensor]:
        """Multiplies each projection with its slice of the fusing convolution; returns the products and one bias."""
        fuse = self.fuse.weight.flatten(1)
        parts = fuse.chunk(len(self.projections), dim=1)
        weights = [part @ projection.weight for part, projection in zip(parts, self.projections, strict=True)]
        # Upsampling does not change biases, so their sum is added once, with the first map.
        bias = fuse @ torch.cat([projection.bias for projection in self.projections])
        return weights, bias


class Decoders(nn.Module):
    """One `DenseDecoder` per task.

    Args:
        channels: Output channels by task.
        widths, width, dropout, norms: As in `DenseDecoder`.
        shared_norms: Use one norm per stage map for all tasks instead of one per task.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        widths: Sequence[int],
        width: int,
        dropout: float,
        norms: bool,
        shared_norms: bool = False,
    ):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in widths) if norms and shared_norms else None
        own_norms = norms and not shared_norms
        self._make_head = partial(DenseDecoder, widths, width=width, dropout=dropout, norms=own_norms)
        heads = {task: self._make_head(out) for task, out in channels.items()}
        self.heads: MutableMapping[str, DenseDecoder] = nn.ModuleDict(heads)  # type: ignore[assignment]

    def add(self, task: str, channels: int, from_: str | None) -> None:
        """Adds a head; see `MultiTaskDenseModel.add_task`."""
        like = self.heads[from_] if from_ else next(iter(self.heads.values()))
        weight = like.classifier.weight
        head = self._make_head(channels).to(weight.device, weight.dtype).train(like.training)
        if from_:
            state = like.state_dict()
            own = head.state_dict()
            head.load_state_dict(
                {name: value if value.shape == own[name].shape else own[name] for name, value in state.items()}
            )
        self.heads[task] = head.requires_grad_(weight.requires_grad)

    def shapes(self) -> dict[str, dict[str, torch.Size]]:
        """Returns the shapes of the weights of each head but for its norms, by task."""
        return {
            task: {name: p.shape for name, p in head.named_parameters() if not name.startswith("norms.")}
            for task, head in self.heads.items()
        }

    def copy_from(self, other: "Decoders") -> None:
        """Makes fresh heads compute what the heads of the same tasks of other decoders do."""
        for task, head in self.heads.items():
            head.copy_from(other.heads[task], other.norms or other.heads[task].norms)

    def forward(self, maps: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """Maps stage maps by task to logits by task, at stride 4."""
        if self.norms is not None:
            # Tasks that share a pass share its maps, which are normalised once.
            distinct = {id(task_maps): task_maps for task_maps in maps.values()}
            normalised = {key: _normalise(task_maps, self.norms) for key, task_maps in distinct.items()}
            maps = {task: normalised[id(task_maps)] for task, task_maps in maps.items()}
        return {task: self.heads[task](task_maps) for task, task_maps in maps.items()}


def _normalise(maps: Sequence[Tensor], norms: Iterable[nn.Module]) -> list[Tensor]:
    return [norm(x.movedim(1, -1)).movedim(-1, 1) for norm, x in zip(norms, maps, strict=True)]
