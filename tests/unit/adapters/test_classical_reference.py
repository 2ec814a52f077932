"""The upper-bound rows hand the signal through to the bit."""

from __future__ import annotations

import pytest
import torch

from tokbench.errors import UsageError
from tokbench.registry import build_tokenizer, expand
from tokbench.types import Code

SHAPES = {"resize": (2, 3, 17, 9), "identity-video": (2, 3, 5, 8, 9), "identity-audio": (2, 2, 1_001)}


@pytest.mark.parametrize("name", SHAPES)
def test_the_signal_comes_back_to_the_bit(name: str) -> None:
    (card,) = expand([name])
    one = build_tokenizer(card, {})
    x = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(1))
    code = one.encode(x)
    assert one.spec.kind == "none"
    assert not code.streams
    assert code.payload is None
    assert torch.equal(build_tokenizer(card, {}).decode(code), x)
    with pytest.raises(UsageError):
        one.decode(Code(payload=(b"",)))


def test_the_cards_say_what_they_take() -> None:
    image, video, audio = (expand([name])[0].spec for name in SHAPES)
    assert (image.modality, video.modality, audio.modality) == ("image", "video", "audio")
    assert audio.input_range == (-1.0, 1.0)
    assert audio.sample_rate is None
    assert image.input_range == video.input_range == (0.0, 1.0)
