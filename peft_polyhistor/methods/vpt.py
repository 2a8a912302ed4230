# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Prompts in windowed attention, after visual prompt tuning (VPT, arXiv:2203.12119).

VPT is a baseline of Polyhistor (arXiv:2210.03265). Prompts are additional tokens of each window. The tokens of the
window attend to them without a position bias, and the outputs of the prompts are dropped after attention. So only the
key and the value of a prompt matter, and they are computed once per task instead of once per window.

Note:
    This is not VPT as its authors run it on Swin (`src/models/vit_prompt/swin_transformer.py` of
    github.com/KMnP/vpt). There, the norm before attention also normalises the prompts; here, the projections to keys
    and values read the prompts as they are. There, the prompts of VPT-shallow remain tokens, which attention,
    feed-forward blocks and patch merging update and all further blocks attend to; here, they exist in the first block
    only. There, the width of the first stage sets the range of the initial prompts of all layers; here, the width of
    the layer itself does. Results need not be those of the paper.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_positive, check_truth
from ..config import MultiTaskConfig, setting
from ..models.blocks import Block, family_of
from ..models.onload import onloaded
from ..registry import register
from ..tuner.layer import AdapterLayer, base_layer_of
from ..tuner.router import Router
from ..tuner.site import Site
from ..tuner.tuner import AdapterTuner


if TYPE_CHECKING:
    from timm.models.swin_transformer import WindowAttention
    from transformers.models.swin.modeling_swin import SwinAttention

PATCH = 3 * 4 * 4  # inputs of a patch, in the range of the initial prompts; the official code has another width


@dataclass
class VptConfig(MultiTaskConfig):
    """Base of the configs of both forms of VPT."""

    prompts: int = setting(50, "Number of prompts per task and layer, at least 1.", check_positive)
    init_weights: bool = setting(
        True,
        "No effect. Attention gives some weight to each token, so that an encoder with prompts never equals the "
        "frozen encoder.",
        check_truth,
    )

    def make_generator(self, sites: list[Site]) -> nn.Module:
        return Prompts(len(self.tasks), self.prompts, [site.width for site in sites])


@dataclass
class VptShallowConfig(VptConfig):
    """Config of VPT-shallow: prompts in the attention of the first block, after arXiv:2203.12119, Sec. 3.2.

    Unlike the original, no further block sees them, and they skip the norm before attention.

    Parameters, per task, with p prompts in a layer of width d: p d.
    """

    method: ClassVar[str] = "MTL_VPT_SHALLOW"


@dataclass
class VptDeepConfig(VptConfig):
    """Config of VPT-deep: prompts in the attention of all blocks, after arXiv:2203.12119, Sec. 3.2.

    Unlike in the original, they skip the norm before attention.

    Parameters, per task and layer of width d, with p prompts: p d.
    """

    method: ClassVar[str] = "MTL_VPT_DEEP"


class Prompts(nn.Module):
    """The generator of VPT, which holds the prompts of each layer."""

    def __init__(self, tasks: int, prompts: int, widths: list[int]):
        super().__init__()
        self.layers = nn.ParameterList()
        for width in widths:
            bound = math.sqrt(6 / (PATCH + width))
            self.layers.append(nn.Parameter(torch.empty(tasks, prompts, width).uniform_(-bound, bound)))

    def forward(self, tasks: Tensor) -> list[Tensor]:
        """Maps indices `(tasks,)` to the prompts of each layer, `(tasks, prompts, width)`."""
        with onloaded(self):
            return [prompts[tasks] for prompts in self.layers]


class PromptLayer(AdapterLayer):
    """Runs windowed attention with prompts in each window."""

    def __init__(self, base_layer: nn.Module, site: Site, router: Router):
        super().__init__(base_layer, site, router)
        self._attend: Any = family_of(base_layer, ATTENTION_FAMILIES)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        prompts = [prompts for prompts, _ in self.active_weights(x)]
        if not prompts:
            return self.base_layer(x, *args, **kwargs)
        # Both families call attention as (x, mask); other keywords of transformers do not concern it.
        mask = args[0] if args else kwargs.get("attention_mask", kwargs.get("mask"))
        with onloaded(self.base_layer):
            return self._attend(self.base_layer, x, torch.cat(prompts, dim=1).to(x.dtype), mask)


def attend_in_windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    dropout: float,
    needs_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Computes attention in windows whose last keys are prompts.

    Args:
        query: `(windows, heads, tokens, channels)`.
        key, value: `(windows, heads, tokens + prompts, channels)`.
        bias: Bias by relative position, `(1, heads, tokens, tokens)`.
        mask: Mask of shifted windows, added to the bias, `(windows of an image, tokens, tokens)`.
        dropout: Dropout probability of the attention weights.
        needs_weights: Also return the attention weights.

    Returns:
        Outputs `(windows, tokens, heads * channels)`, and attention weights
        `(windows, heads, tokens, tokens + prompts)` or `None`.
    """
    if mask is not None:
        bias = bias + mask.repeat(query.shape[0] // mask.shape[0], 1, 1)[:, None]
    bias = F.pad(bias, (0, key.shape[-2] - query.shape[-2])).to(query.dtype)
    weights = None
    if needs_weights:
        scores = query @ key.mT / math.sqrt(query.shape[-1]) + bias
        weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout)
        output = weights @ value
    else:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    return output.transpose(1, 2).flatten(2), weights


def with_prompts(x: Tensor, prompts: Tensor) -> Tensor:
    """Appends the prompts of its task to the tokens of each window.

    Args:
        x: `(tasks * batch * windows, tokens, width)`.
        prompts: `(tasks, prompts, width)`.
    """
    of_windows = prompts.repeat_interleave(x.shape[0] // prompts.shape[0], dim=0)
    return torch.cat([x, of_windows], dim=1)


def to_heads(x: Tensor, heads: int) -> Tensor:
    """Splits `(windows, tokens, width)` into heads, `(windows, heads, tokens, width / heads)`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend_transformers(
    attention: "SwinAttention", x: Tensor, prompts: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Runs `SwinAttention` of transformers, which returns attention weights only in its eager form."""
    heads = attention.num_attention_heads
    key, value = (
        to_heads(with_prompts(project(x), project(prompts)), heads) for project in (attention.k_proj, attention.v_proj)
    )
    dropout = attention.attention_dropout if attention.training else 0.0
    bias = attention.relative_position_bias()
    query = to_heads(attention.q_proj(x), heads)
    is_eager = attention.config._attn_implementation == "eager"
    output, weights = attend_in_windows(query, key, value, bias, mask, dropout, needs_weights=is_eager)
    return attention.o_proj(output), weights


def attend_timm(attention: "WindowAttention", x: Tensor, prompts: Tensor, mask: Tensor | None) -> Tensor:
    """Runs `WindowAttention` of timm's Swin."""
    heads = attention.num_heads
    query, key, value = attention.qkv(x).chunk(3, dim=-1)
    _, prompt_key, prompt_value = attention.qkv(prompts).chunk(3, dim=-1)
    key, value = (to_heads(with_prompts(*pair), heads) for pair in ((key, prompt_key), (value, prompt_value)))
    dropout = attention.attn_drop.p if attention.training else 0.0
    bias = attention._get_rel_pos_bias()
    output, _ = attend_in_windows(to_heads(query, heads), key, value, bias, mask, dropout)
    return attention.proj_drop(attention.proj(output))


# By Python module and class. Both scale scores by 1 / sqrt(channels of a head), as PyTorch does.
ATTENTION_FAMILIES: dict[tuple[str, str], Callable[..., Any]] = {
    ("transformers.models.swin.modeling_swin", "SwinAttention"): attend_transformers,
    ("timm.models.swin_transformer", "WindowAttention"): attend_timm,
}


class VptDeepModel(AdapterTuner[VptConfig]):
    """PEFT tuner of VPT-deep."""

    prefix = "mtl_vpt_deep_"

    def known_sites(self, model: nn.Module, blocks: list[Block], config: VptConfig) -> list[Site]:
        return [
            self._site_of(
                base_layer_of(model.get_submodule(block.self_attention)), block.self_attention, block.width, index
            )
            for index, block in enumerate(blocks)
        ]

    def site_at(self, module: nn.Module, name: str, index: int, config: VptConfig) -> Site:
        raise ValueError(
            f"{config.method} cannot put prompts into '{name}' ({type(module).__name__}). Leave `target_modules` out, "
            "or name modules of windowed attention, for VPT-shallow that of the first layer."
        )

    def _site_of(self, module: nn.Module, name: str, width: int, index: int) -> Site:
        if family_of(module, ATTENTION_FAMILIES) is None:
            raise ValueError(
                f"'{name}' ({type(module).__name__}) is not the windowed attention of Swin in transformers or timm, "
                "which VPT needs. Choose another method, or leave `target_modules` out on a Swin."
            )
        return Site(name, PromptLayer, width, index)


class VptShallowModel(VptDeepModel):
    """PEFT tuner of VPT-shallow."""

    prefix = "mtl_vpt_shallow_"

    def known_sites(self, model: nn.Module, blocks: list[Block], config: VptConfig) -> list[Site]:
        return super().known_sites(model, blocks[:1], config)


register(VptDeepConfig.method, VptDeepConfig, VptDeepModel)
register(VptShallowConfig.method, VptShallowConfig, VptShallowModel)
