"""A third party's tokenizer in one file: `tokbench run -t my_tokenizer.py:Mine`."""

import torch
import torch.nn.functional as F

from tokbench.spec import TokenizerSpec
from tokbench.types import Code, Stream


class Mine:
    """Averages 8x8 patches and rounds each channel to 8 levels: one token of 512 a patch."""

    spec = TokenizerSpec("mine", "image", "discrete", (-1.0, 1.0), downsample=(8, 8), codebook_size=(512,))

    def encode(self, x):
        levels = F.avg_pool2d(x, 8).add(1).mul(3.5).round().clamp(0, 7).long()
        return Code((Stream("0", 512, levels[:, 0] + 8 * levels[:, 1] + 64 * levels[:, 2]),))

    def decode(self, code):
        token = code.streams[0].indices
        levels = torch.stack([token % 8, token // 8 % 8, token // 64], 1)
        return F.interpolate(levels / 3.5 - 1, scale_factor=8.0)
