"""The plugin's tokenizer."""

import torch
import torch.nn.functional as F

from tokbench.types import Code, Stream


class Acme:
    def __init__(self, card, weights):
        self.spec = card.spec
        self.levels = card.options["levels"]

    def encode(self, x):
        grey = F.avg_pool2d(x.mean(1, keepdim=True), 8)[:, 0]
        return Code((Stream("grey", self.levels, (grey * (self.levels - 1)).round().long()),))

    def decode(self, code):
        grey = code.streams[0].indices.float() / (self.levels - 1)
        return F.interpolate(grey[:, None].expand(-1, 3, -1, -1), scale_factor=8.0).to(torch.float32)
