"""SigLIP's vision transformer without its pooling head, as tokenizers that read its features use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .checkpoint import Layout
from .vit2d import Attention, Block, Mlp, fused_qkv, layer_norm, renamed


class SiglipTrunk(nn.Module):
    """(B, 3, 16 * side, 16 * side) in [-1, 1] to the outputs (B, side * side, width) of chosen layers.

    Args:
        width: Of the tokens.
        layers: How many blocks there are.
        heads: Of the attention.
        hidden: Width inside the MLPs.
        side: Positions a side.
        taken: Which outputs: 0 the embeddings, k those of block k, -1 the last after the final norm, which exists only then.
    """

    def __init__(self, width: int, layers: int, heads: int, hidden: int, side: int, taken: Sequence[int]) -> None:
        super().__init__()
        norm = layer_norm(1e-6)
        self._taken = taken
        self.patch_embed = nn.Conv2d(3, width, 16, stride=16)
        self.positions = nn.Parameter(torch.empty(side * side, width))
        self.blocks = nn.ModuleList(
            Block(norm, width, Attention(width, heads), Mlp(width, hidden, tanh=True)) for _ in range(layers)
        )
        self.norm = norm(width) if -1 in taken else nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = [self.patch_embed(x).flatten(2).transpose(1, 2) + self.positions]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        return [self.norm(hidden[-1]) if layer == -1 else hidden[layer] for layer in self._taken]


def siglip_layouts(published: str, own: str) -> list[Layout]:
    """Return the layouts from transformers' names to those above.

    Args:
        published: Regular expression of what stands before `embeddings` and `encoder` in the file.
        own: What stands before `patch_embed` in the module.
    """
    names = renamed(
        [
            (f"^{published}", own),
            (rf"^{own}embeddings\.patch_embedding\.", f"{own}patch_embed."),
            (rf"^{own}embeddings\.position_embedding\.weight$", f"{own}positions"),
            (rf"^{own}encoder\.layers\.", f"{own}blocks."),
            (rf"^{own}post_layernorm\.", f"{own}norm."),
            (rf"^({own}.*)\.layer_norm([12])\.", r"\1.norm\2."),
            (rf"^({own}.*)\.self_attn\.out_proj\.", r"\1.attn.proj."),
            (rf"^({own}.*)\.self_attn\.", r"\1.attn."),
        ]
    )
    return [names, fused_qkv("q_proj", "k_proj", "v_proj")]
