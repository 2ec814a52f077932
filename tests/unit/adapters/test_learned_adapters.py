"""Learned tokenizers against the library classes they wrap: same weights, same bits; and what happens when a file is wrong."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tokbench import weights
from tokbench.catalog import at_point, parse_options, read_catalog
from tokbench.errors import CardError, MissingExtra, NotApplicable, UsageError, install_command
from tokbench.registry import build_tokenizer
from tokbench.spec import Card
from tokbench.types import Code, Movable, Stream, Tokenizer

ROOT = Path(__file__).parents[3]
FAMILIES = ("autoencoder-kl", "taesd", "dc-ae", "wan", "encodec", "dac", "mimi")
CARDS = {card.name: card for family in FAMILIES for card in read_catalog(ROOT / "adapters" / f"{family}.toml")}

BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
TINY: dict[str, dict[str, Any]] = {
    "sd-vae-ft-mse": {
        "class": "AutoencoderKL", **BLOCKS, "block_out_channels": [8, 16], "layers_per_block": 1,
        "latent_channels": 4, "norm_num_groups": 4,
    },
    "taesd3": {
        "class": "AutoencoderTiny", "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8],
        "num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1], "latent_channels": 16,
    },
    "dc-ae-f32c32-in-1.0": {
        "class": "AutoencoderDC", "latent_channels": 8, "attention_head_dim": 8,
        "encoder_block_types": ["ResBlock", "EfficientViTBlock"],
        "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
        "encoder_block_out_channels": [8, 16], "decoder_block_out_channels": [8, 16],
        "encoder_layers_per_block": [1, 1], "decoder_layers_per_block": [1, 1],
        "encoder_qkv_multiscales": [[], []], "decoder_qkv_multiscales": [[], []],
        "decoder_norm_types": ["batch_norm", "rms_norm"], "decoder_act_fns": ["relu", "silu"],
    },
    "wan2.1-vae": {
        "class": "AutoencoderKLWan", "base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
        "attn_scales": [], "temperal_downsample": [False, True, True],
    },
}  # fmt: skip
ENCODEC = {"sampling_rate": 24000, "target_bandwidths": [1.5, 3.0, 6.0], "num_filters": 4, "hidden_size": 16}
CHUNKED = {
    "sampling_rate": 4800, "audio_channels": 2, "target_bandwidths": [0.3, 0.6], "num_filters": 4, "hidden_size": 16,
    "use_causal_conv": False, "norm_type": "time_group_norm", "normalize": True, "chunk_length_s": 1.0, "overlap": 0.1,
}  # fmt: skip
DAC = {
    "sampling_rate": 16000, "downsampling_ratios": [2, 4, 5, 8], "encoder_hidden_size": 4, "decoder_hidden_size": 32,
    "n_codebooks": 4, "codebook_size": 64, "codebook_dim": 4,
}  # fmt: skip
MIMI = {
    "hidden_size": 32, "num_filters": 8, "codebook_size": 64, "codebook_dim": 16, "num_quantizers": 4,
    "vector_quantization_hidden_dimension": 16, "upsample_groups": 32, "num_hidden_layers": 1,
    "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 12,
}  # fmt: skip

Make = Callable[[], Any]
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def same(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def library(card: str, architecture: Mapping[str, Any]) -> Any:
    """The library's own class with its own random initialisation, from a fixed seed, and with codebooks that differ."""
    import diffusers
    import transformers

    arguments = dict(architecture)
    torch.manual_seed(11)
    if "class" in arguments:
        module = getattr(diffusers, arguments.pop("class"))(**arguments)
    else:
        name = {"encodec": "Encodec", "dac": "Dac", "mimi": "Mimi"}[CARDS[card].family]
        module = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**arguments))
    for key, buffer in module.named_buffers():
        if key.endswith(("embed", "embed_sum")):
            buffer.normal_(std=0.02)
    return module.eval()


def adapter(
    name: str,
    architecture: Mapping[str, Any],
    state: Mapping[str, Tensor],
    tmp: Path,
    query: str = "",
    **options: Any,
) -> Tokenizer:
    """The adapter as a user gets it: the card at its point, the file found by an override directory."""
    card = at_point(CARDS[name], parse_options(query))
    card = replace(card, architecture=architecture, options={**card.options, **options})
    path = tmp / name / card.weights[0].file
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    found = weights.resolve(
        card.weights, owner=name, offline=True, overrides={weights.ALL_ROLES: tmp / name}, cache=tmp / "cache"
    )
    assert found == {"model": path}
    return build_tokenizer(card, found)


def indices(code: Code) -> Tensor:
    return torch.stack([stream.indices for stream in code.streams], dim=1)


def audio(batch: int, channels: int, samples: int) -> Tensor:
    return torch.randn(batch, channels, samples, generator=torch.Generator().manual_seed(samples)).clamp(-1, 1) * 0.3


def picture(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


# ------------------------------------------------------------------------------------------------------------ cards


@pytest.mark.parametrize("name", sorted(CARDS))
def test_card_is_complete(name: str) -> None:
    card = CARDS[name]
    assert card.extra in {"diffusers", "transformers"}
    assert card.spec.input_range == (-1.0, 1.0)
    assert [file.role for file in card.weights] == ["model"]
    assert card.weights[0].hub
    assert card.weights[0].file.endswith(".safetensors")
    assert card.licence != "unknown"
    assert card.summary
    assert math.prod(card.spec.downsample) > 1
    assert (card.spec.kind == "continuous") == (card.spec.latent_channels is not None)
    assert (card.spec.kind == "discrete") == bool(card.spec.codebook_size)


def published_points(name: str) -> list[Card]:
    card = CARDS[name]
    choices = card.option_specs[0].choices if card.option_specs else ()
    return [at_point(card, {card.option_specs[0].name: value}) for value in choices] or [at_point(card, {})]


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.family == "encodec"])
def test_encodec_points_follow_from_the_bandwidth(name: str) -> None:
    for card in published_points(name):
        arch, spec = card.architecture, card.spec
        hop = math.prod(arch.get("upsampling_ratios", (8, 5, 4, 2)))
        assert spec.downsample == (hop,)
        rate, bits = math.ceil(arch["sampling_rate"] / hop), math.log2(spec.codebook_size[0])
        count = int(card.options.get("bandwidth", arch["target_bandwidths"][-1]) * 1000 // (rate * bits))
        assert len(spec.codebook_size) == count
        assert spec.sample_rate == arch["sampling_rate"]
        assert spec.channels == arch["audio_channels"]
        if spec.token_rate is not None:
            assert spec.token_rate == rate * count


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.family in {"dac", "mimi"}])
def test_codebook_points_follow_from_their_number(name: str) -> None:
    assert len(published_points(name)) >= 5
    for card in published_points(name):
        spec = card.spec
        assert len(spec.codebook_size) == card.options["num_codebooks"]
        assert set(spec.codebook_size) == {card.architecture["codebook_size"]}
        assert spec.token_rate == pytest.approx(len(spec.codebook_size) * (spec.sample_rate or 0) / spec.downsample[0])


# Tensors and parameters as published or as the official code builds them.
SIZES = {
    "sd-vae-ft-mse": (248, 83.65), "sd-vae-ft-ema": (248, 83.65), "sdxl-vae": (248, 83.65),
    "sdxl-vae-fp16-fix": (248, 83.65), "sd3-vae": (244, 83.82), "flux1-vae": (244, 83.82),
    "taesd": (134, 2.45), "taesdxl": (134, 2.45), "taesd3": (134, 2.46), "taef1": (134, 2.46),
    "dc-ae-f32c32-in-1.0": (362, 323.36), "dc-ae-f32c32-mix-1.0": (362, 323.36),
    "dc-ae-f64c128-in-1.0": (418, 676.90), "dc-ae-f64c128-mix-1.0": (418, 676.90),
    "dc-ae-f128c512-in-1.0": (474, 1120.68), "dc-ae-f128c512-mix-1.0": (474, 1120.68),
    "dc-ae-f32c32-sana-1.0": (375, 312.25), "wan2.1-vae": (194, 126.89),
    "encodec-24khz": (252, 14.85), "encodec-48khz": (224, 14.86), "encodec-32khz": (116, 56.88),
    "dac-16khz": (238, 74.14), "dac-24khz": (338, 74.65), "dac-44khz": (223, 76.62), "mimi": (350, 79.31),
}  # fmt: skip


def full_size(name: str) -> Any:
    import diffusers
    import transformers

    from tokbench.adapters.nn.checkpoint import skeleton

    card = CARDS[name]
    arguments = dict(card.architecture)
    if "class" in arguments:
        kind = getattr(diffusers, arguments.pop("class"))
        return skeleton(lambda: kind(**arguments))
    prefix = {"encodec": "Encodec", "dac": "Dac", "mimi": "Mimi"}[card.family]
    config = getattr(transformers, f"{prefix}Config")(**arguments)
    return skeleton(lambda: getattr(transformers, f"{prefix}Model")(config))


def test_every_card_has_a_known_size() -> None:
    assert set(SIZES) == set(CARDS)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_full_architecture_has_the_published_size(name: str) -> None:
    module = full_size(name)
    tensors, millions = SIZES[name]
    assert len(module.state_dict()) == tensors
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    assert sum(p.numel() for p in module.parameters() if not p.is_meta) < 1e-3 * sum(
        p.numel() for p in module.parameters()
    )
    card = CARDS[name]
    if card.spec.kind == "continuous":
        if ratio := getattr(module, "spatial_compression_ratio", None):
            assert card.spec.downsample[-1] == ratio
        else:
            assert card.spec.downsample == (8, 8)


@pytest.mark.parametrize("name", ["encodec-24khz", "dac-24khz", "mimi", "wan2.1-vae"])
def test_full_architecture_has_the_shapes_of_the_official_code(name: str) -> None:
    golden = json.loads((ROOT / "tests" / "parity" / "tokenizers" / name / "golden.json").read_text())["published"]
    statistics = ("codebook.inited", "codebook.cluster_size", "codebook.embed_avg", "codebook.initialized")
    state = full_size(name).state_dict()
    shapes = sorted(list(value.shape) for key, value in state.items() if not key.endswith(statistics))
    assert len(shapes) == golden["tensors"]
    assert hashlib.sha256(json.dumps(shapes).encode()).hexdigest() == golden["shapes_sha256"]


# ------------------------------------------------------------------------------------------------ images and video


def library_latents(module: Any, x: Tensor) -> Tensor:
    out = module.encode(x)
    names = [name for name in ("latent_dist", "latents", "latent") if hasattr(out, name)]
    assert len(names) == 1
    found = getattr(out, names[0])
    latents: Tensor = found.mode() if names == ["latent_dist"] else found
    return latents


@pytest.mark.parametrize("name", sorted(TINY))
def test_autoencoder_equals_the_library_to_the_bit(name: str, tmp_path: Path) -> None:
    module = library(name, TINY[name])
    tokenizer = adapter(name, TINY[name], module.state_dict(), tmp_path)
    assert isinstance(tokenizer, Movable)
    x = picture(2, 3, 5, 16, 24) if CARDS[name].spec.modality == "video" else picture(2, 3, 32, 48)
    with torch.no_grad():
        expected = library_latents(module, x)
        reconstruction = module.decode(expected).sample
    code = tokenizer.encode(x)
    assert code.latents is not None
    assert torch.equal(code.latents, expected)
    assert torch.equal(tokenizer.decode(code), reconstruction)
    assert reconstruction.shape == x.shape
    assert reconstruction.std() > 0
    assert not code.latents.requires_grad


def test_float16_files_are_read_as_float32_and_other_dtypes_run(tmp_path: Path) -> None:
    name = "sd-vae-ft-mse"
    module = library(name, TINY[name]).half()
    tokenizer = adapter(name, TINY[name], module.state_dict(), tmp_path)
    x = picture(1, 3, 16, 16)
    first = tokenizer.encode(x).latents
    assert first is not None
    with torch.no_grad():
        assert torch.equal(first, module.float().encode(x).latent_dist.mode())
    assert isinstance(tokenizer, Movable)
    tokenizer.to("cpu", "bfloat16")
    code = tokenizer.encode(x)
    assert code.latents is not None
    assert code.latents.dtype == torch.bfloat16
    assert tokenizer.decode(code).dtype == torch.float32
    with pytest.raises(UsageError, match="float64"):
        tokenizer.to("cpu", "float64")


def test_sdxl_refuses_float16_and_its_fix_does_not(tmp_path: Path) -> None:
    tiny = TINY["sd-vae-ft-mse"]
    module = library("sdxl-vae", tiny)
    for name in ("sdxl-vae", "sdxl-vae-fp16-fix"):
        architecture = {**tiny, "force_upcast": CARDS[name].architecture["force_upcast"]}
        tokenizer = adapter(name, architecture, module.state_dict(), tmp_path)
        assert isinstance(tokenizer, Movable)
        tokenizer.to("cpu", "bfloat16")
        if name == "sdxl-vae":
            with pytest.raises(NotApplicable, match="float16"):
                tokenizer.to("cpu", "float16")
        else:
            tokenizer.to("cpu", "float16")


@pytest.mark.parametrize("kernels", [False, True], ids=["linear", "1x1"])
def test_old_attention_keys_are_understood(kernels: bool, tmp_path: Path) -> None:
    name = "sd-vae-ft-mse"
    module = library(name, TINY[name])
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in module.state_dict().items():
        renamed = key
        for new, before in old.items():
            renamed = renamed.replace(f".{new}.", f".{before}.")
        state[renamed] = value[..., None, None] if kernels and renamed != key and value.ndim == 2 else value
    assert sum("proj_attn" in key for key in state) == 4
    x = picture(1, 3, 16, 16)
    latents = adapter(name, TINY[name], state, tmp_path).encode(x).latents
    with torch.no_grad():
        assert torch.equal(latents if latents is not None else x, module.encode(x).latent_dist.mode())


def test_batch_norm_counters_may_be_absent(tmp_path: Path) -> None:
    name = "dc-ae-f32c32-in-1.0"
    module = library(name, TINY[name])
    state = {key: value for key, value in module.state_dict().items() if "num_batches_tracked" not in key}
    assert len(state) < len(module.state_dict())
    adapter(name, TINY[name], state, tmp_path)


# ------------------------------------------------------------------------------------------------------------ sound


def weight_g(state: dict[str, Tensor]) -> dict[str, Tensor]:
    pairs = (("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v"))
    out = {}
    for key, value in state.items():
        renamed = key
        for new, old in pairs:
            renamed = renamed.replace(new, old)
        out[renamed] = value
    return out


def bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    endings = ("inited", "cluster_size", "embed_avg")
    return {key: value for key, value in weight_g(state).items() if not key.endswith(endings)}


@pytest.mark.parametrize("layout", [same, weight_g, bare], ids=["installed", "published", "without-statistics"])
def test_encodec_equals_the_library_to_the_bit(layout: Change, tmp_path: Path) -> None:
    name = "encodec-24khz"
    module = library(name, ENCODEC)
    tokenizer = adapter(name, ENCODEC, layout(module.state_dict()), tmp_path, "bandwidth=3")
    assert tokenizer.spec.name == "encodec-24khz?bandwidth=3"
    assert tokenizer.spec.codebook_size == (1024,) * 4
    x = audio(2, 1, 3300)
    with torch.no_grad():
        expected = module.encode(x, bandwidth=3.0)
        signal = module.decode(expected.audio_codes, expected.audio_scales).audio_values
    code = tokenizer.encode(x)
    assert [stream.codebook for stream in code.streams] == ["0", "1", "2", "3"]
    assert code.streams[0].indices.dtype == torch.int64
    assert code.side_bits == 0
    assert torch.equal(indices(code), expected.audio_codes[0])
    assert indices(code).unique().numel() > len(code.streams)
    assert torch.equal(tokenizer.decode(code), signal)
    assert signal.shape[-1] == 3520


def test_lower_bandwidths_are_prefixes(tmp_path: Path) -> None:
    module = library("encodec-24khz", ENCODEC)
    x = audio(1, 1, 1600)
    codes = [
        indices(adapter("encodec-24khz", ENCODEC, module.state_dict(), tmp_path, query).encode(x))
        for query in ("bandwidth=1.5", "bandwidth=6")
    ]
    assert [code.shape[1] for code in codes] == [2, 8]
    assert torch.equal(codes[0], codes[1][:, :2])


@pytest.mark.parametrize("length", [4000, 4800, 9600, 11521, 14400])
def test_chunked_encodec_equals_the_library_to_the_bit(length: int, tmp_path: Path) -> None:
    name = "encodec-48khz"
    module = library(name, CHUNKED)
    tokenizer = adapter(name, CHUNKED, module.state_dict(), tmp_path, bandwidth=0.6)
    x = audio(2, 2, length)
    with torch.no_grad():
        out = module.encode(x, bandwidth=0.6)
        signal = module.decode(
            out.audio_codes, out.audio_scales, last_frame_pad_length=out.last_frame_pad_length
        ).audio_values
    code = tokenizer.encode(x)
    chunks = len(out.audio_codes)
    assert chunks == -(-length // 4320)
    assert code.side_bits == 32 * chunks
    assert code.side["scales"].shape == (2, chunks)
    valid = [out.audio_codes[i] for i in range(chunks)]
    if out.last_frame_pad_length:
        valid[-1] = valid[-1][..., : -out.last_frame_pad_length]
    assert torch.equal(indices(code), torch.cat(valid, dim=-1))
    assert torch.equal(tokenizer.decode(code), signal)
    assert signal.shape[-1] >= length


def test_chunks_of_uneven_frames_work_where_the_library_stops(tmp_path: Path) -> None:
    name, length = "encodec-48khz", 2 * 4320 + 100
    module = library(name, CHUNKED)
    x = audio(1, 2, length)
    with pytest.raises(RuntimeError), torch.no_grad():
        module.encode(x, bandwidth=0.6)
    tokenizer = adapter(name, CHUNKED, module.state_dict(), tmp_path, bandwidth=0.6)
    code = tokenizer.encode(x)
    assert code.side["frames"].tolist() == [[15, 14, 1]]
    decoded = tokenizer.decode(code)
    assert decoded.shape[:2] == (1, 2)
    assert decoded.shape[-1] >= length
    with torch.no_grad():
        alone = module.encode(x[..., :4320], bandwidth=0.6)
        first = module.decode(alone.audio_codes, alone.audio_scales).audio_values
    assert first.shape[-1] == 4480
    assert torch.isfinite(decoded).all()


def unfolded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight norm not folded, as DAC's own release stores it."""
    out = {}
    for key, value in state.items():
        if key.endswith(".weight") and value.ndim == 3:
            stem = key.removesuffix("weight")
            out[f"{stem}weight_v"] = 3 * value
            out[f"{stem}weight_g"] = value.flatten(1).norm(dim=1)[:, None, None]
        else:
            out[key] = value
    return out


def test_dac_equals_the_library_to_the_bit(tmp_path: Path) -> None:
    name = "dac-16khz"
    module = library(name, DAC)
    tokenizer = adapter(name, DAC, module.state_dict(), tmp_path, "num_codebooks=2")
    x = audio(2, 1, 6400)
    with torch.no_grad():
        expected = module.encode(x, n_quantizers=2).audio_codes
        signal = module.decode(audio_codes=expected).audio_values
    code = tokenizer.encode(x)
    assert torch.equal(indices(code), expected)
    assert indices(code).unique().numel() > 10
    decoded = tokenizer.decode(code)
    assert torch.equal(decoded[:, 0], signal)
    assert decoded.shape == (2, 1, 6392)
    assert tokenizer.spec.token_rate == 100.0
    with pytest.raises(ValueError, match="multiples of 320"):
        tokenizer.encode(x[..., :-1])
    whole = adapter(name, DAC, module.state_dict(), tmp_path, num_codebooks=4).encode(x)
    assert torch.equal(indices(whole)[:, :2], expected)


def test_dac_folds_weight_norm(tmp_path: Path) -> None:
    name = "dac-16khz"
    module = library(name, DAC)
    state = unfolded(module.state_dict())
    assert sum(key.endswith("weight_g") for key in state) > 20
    x = audio(1, 1, 3200)
    plain = adapter(name, DAC, module.state_dict(), tmp_path / "a", num_codebooks=4)
    folded = adapter(name, DAC, state, tmp_path / "b", num_codebooks=4)
    code = plain.encode(x)
    assert torch.equal(indices(folded.encode(x)), indices(code))
    torch.testing.assert_close(folded.decode(code), plain.decode(code), atol=1e-5, rtol=1e-4)


def flat(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The key names of the published Mimi file."""
    out = {}
    for key, value in state.items():
        renamed = key
        for half in ("encoder", "decoder"):
            renamed = renamed.replace(f"{half}.{half}_seanet.", f"{half}.")
            renamed = renamed.replace(f"{half}.{half}_transformer.", f"{half}_transformer.")
        out[renamed.replace("encoder.downsample.", "downsample.").replace("decoder.upsample.", "upsample.")] = value
    return out


@pytest.mark.parametrize("layout", [same, flat], ids=["installed", "published"])
def test_mimi_equals_the_library_to_the_bit(layout: Change, tmp_path: Path) -> None:
    name = "mimi"
    module = library(name, MIMI)
    state = layout(module.state_dict())
    if layout is flat:
        assert {key.split(".")[0] for key in state} >= {"encoder_transformer", "downsample", "upsample"}
    tokenizer = adapter(name, MIMI, state, tmp_path, "num_codebooks=2")
    x = audio(2, 1, 1920 * 3)
    with torch.no_grad():
        expected = module.encode(x, num_quantizers=2).audio_codes
        signal = module.decode(expected).audio_values
    code = tokenizer.encode(x)
    assert torch.equal(indices(code), expected)
    assert indices(code).unique().numel() > 2
    assert torch.equal(tokenizer.decode(code), signal)
    assert tokenizer.spec.token_rate == 25.0
    with pytest.raises(ValueError, match="multiples of 1920"):
        tokenizer.encode(x[..., 1:])


def test_mimi_forgets_derived_codebooks_when_moved(tmp_path: Path) -> None:
    state = library("mimi", MIMI).state_dict()
    used, fresh = (adapter("mimi", MIMI, state, tmp_path, num_codebooks=4) for _ in range(2))
    code = used.encode(audio(1, 1, 3840))
    used.decode(code)
    for tokenizer in (used, fresh):
        assert isinstance(tokenizer, Movable)
        tokenizer.to("cpu", "bfloat16")
    assert torch.equal(used.decode(code), fresh.decode(code))
    assert used.decode(code).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "architecture", "hop"), [("encodec-24khz", ENCODEC, 320), ("mimi", MIMI, 1920)], ids=["encodec", "mimi"]
)
def test_codes_decode_without_their_encoder(name: str, architecture: dict[str, Any], hop: int, tmp_path: Path) -> None:
    """A code rebuilt from its integers alone, in another order of calls, gives the same signal: no state is kept."""
    tokenizer = adapter(name, architecture, library(name, architecture).state_dict(), tmp_path, num_codebooks=2)
    first, other = tokenizer.encode(audio(1, 1, hop * 4)), tokenizer.encode(audio(1, 1, hop * 2))
    expected = tokenizer.decode(first)
    tokenizer.decode(other)
    rebuilt = Code(tuple(Stream(s.codebook, s.codebook_size, s.indices.clone()) for s in first.streams))
    assert torch.equal(tokenizer.decode(rebuilt), expected)


# ----------------------------------------------------------------------------------------------- what can go wrong


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    name = "taesd3"
    state = library(name, TINY[name]).state_dict()
    key = next(iter(state))
    broken = {**{k: v for k, v in state.items() if k != key}, "stranger.weight": torch.zeros(1)}
    with pytest.raises(weights.WeightsRefused) as caught:
        adapter(name, TINY[name], broken, tmp_path)
    assert key in str(caught.value)
    assert "stranger.weight" in str(caught.value)
    assert "diffusion_pytorch_model.safetensors" in str(caught.value)


def test_an_unknown_class_is_a_card_error(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"DiffusionPipeline.*AutoencoderKL"):
        adapter("taesd3", {"class": "DiffusionPipeline"}, {"a": torch.zeros(1)}, tmp_path)


@pytest.mark.parametrize(("name", "extra"), [("taesd3", "diffusers"), ("mimi", "transformers")])
def test_an_absent_library_names_its_extra(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    architecture = TINY.get(name, MIMI)
    with pytest.raises(MissingExtra) as caught:
        adapter(name, architecture, {"a": torch.zeros(1)}, tmp_path)
    assert f"{name} needs {extra}" in str(caught.value)
    assert caught.value.fix == install_command(extra)


@pytest.mark.parametrize("name", ["dac-16khz", "wan2.1-vae"])
def test_building_draws_no_random_numbers(name: str, tmp_path: Path) -> None:
    architecture = TINY.get(name, DAC)
    state = library(name, architecture).state_dict()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    adapter(name, architecture, state, tmp_path, **({"num_codebooks": 4} if name == "dac-16khz" else {}))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_sound_needs_no_torchaudio_and_cards_need_no_torch() -> None:
    script = (
        "import sys; sys.modules['torchaudio'] = None\n"
        "import tokbench.weights, tokbench.catalog, pathlib\n"
        f"for path in pathlib.Path({str(ROOT / 'adapters')!r}).glob('*.toml'): tokbench.catalog.read_catalog(path)\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "assert 'huggingface_hub' not in sys.modules, 'huggingface_hub'\n"
        "from transformers import DacModel, EncodecModel, MimiModel\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
