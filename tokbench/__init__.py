"""tokbench: benchmark and evaluation suite for image, video and audio tokenizers."""

__version__ = "0.1.0"
