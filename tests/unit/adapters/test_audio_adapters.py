"""Sound tokenizers through libraries against the bare classes with the same random weights; rates as their cards state them."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tokbench.adapters.nn.resample import resampled
from tokbench.adapters.s3tokenizer import merged, state_of_onnx
from tokbench.adapters.units import centroids_of
from tokbench.catalog import at_point, parse_options, read_catalog
from tokbench.contract import check
from tokbench.data import Item
from tokbench.errors import NotApplicable
from tokbench.metrics.rate import Rate
from tokbench.prepare.audio import resample
from tokbench.reconstruct import Engine, reconstruct
from tokbench.registry import build_tokenizer
from tokbench.spec import AudioPrepare, EvalProtocol
from tokbench.types import Code
from tokbench.weights import WeightsRefused

ROOT = Path(__file__).parents[3]
FAMILIES = (
    "snac", "speechtokenizer", "s3tokenizer", "xcodec", "higgs", "neucodec", "pocket-tts", "vibevoice", "oobleck", "units",
    "encodec", "dac", "mimi",
)  # fmt: skip
CARDS = {card.name: card for family in FAMILIES for card in read_catalog(ROOT / "adapters" / f"{family}.toml")}

SPEECH = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
BERT = {
    "model_type": "wav2vec2-bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "feature_projection_input_dim": 160, "position_embeddings_type": "relative_key",
}  # fmt: skip
WAVE = {"model_type": "dac", "encoder_hidden_size": 4, "decoder_hidden_size": 32, "hidden_size": 8, "n_codebooks": 1}
SEANET = {
    "n_filters": 4, "strides": [8, 5, 4, 2], "dimension": 8, "bidirectional": True, "codebook_size": 1024, "n_q": 8,
}  # fmt: skip
SNAC = {
    "encoder_dim": 4, "decoder_dim": 64, "codebook_size": 4096, "codebook_dim": 4, "noise": True, "depthwise": True,
}  # fmt: skip
WIDE_SNAC = SNAC | {
    "encoder_rates": [2, 3, 8, 8], "decoder_rates": [8, 8, 3, 2], "vq_strides": [8, 4, 2, 1], "attn_window_size": 32,
}  # fmt: skip
NEU = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 16, "encoder_hidden_size": 4, "quantization_dim": 96,
    "semantic_model_config": BERT,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "snac-24khz": SNAC | {
        "sampling_rate": 24000, "encoder_rates": [2, 4, 8, 8], "decoder_rates": [8, 8, 4, 2], "vq_strides": [4, 2, 1],
        "attn_window_size": 0,
    },
    "snac-32khz": WIDE_SNAC | {"sampling_rate": 32000},
    "snac-44khz": WIDE_SNAC | {"sampling_rate": 44100},
    "speechtokenizer": SEANET,
    "speechtokenizer-snake": SEANET | {"activation": "Snake"},
    "s3tokenizer-v2-25hz": {"n_mels": 128, "n_audio_state": 128, "n_audio_head": 2, "n_audio_layer": 1},
    "xcodec": {"semantic_model_config": {"model_type": "hubert", **SPEECH}, "acoustic_model_config": WAVE},
    "xcodec-wavlm-mls": {"semantic_model_config": {"model_type": "wavlm", **SPEECH}, "acoustic_model_config": WAVE},
    "higgs-audio-v2": {
        "model_type": "higgs_audio_v2_tokenizer", "semantic_model_config": {"model_type": "hubert", **SPEECH},
        "acoustic_model_config": WAVE | {"downsampling_ratios": [8, 5, 4, 2, 3], "upsampling_ratios": [8, 5, 4, 2, 3]},
        "target_bandwidths": [0.5, 1, 1.5, 2], "codebook_dim": 4,
    },
    "xcodec2": {"model_type": "xcodec2", **NEU},
    "neucodec": {"model_type": "neucodec", **NEU},
    "pocket-tts": {
        "hidden_size": 32, "num_filters": 4, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": 16, "upsample_groups": 32,
    },
    "vibevoice-acoustic": {"num_filters": 2, "depths": [1] * 7},
    "stable-audio-vae": {
        "encoder_hidden_size": 8, "downsampling_ratios": [2, 4, 4, 8, 8], "channel_multiples": [1, 1, 1, 2, 2],
        "decoder_channels": 4, "decoder_input_channels": 4,
    },
    "hubert-base-l6-km50": {"model_type": "hubert", "layer": 1, "config": SPEECH},
    "wavlm-large-l7-km1000": {
        "model_type": "wavlm", "layer": 1, "normalize": True,
        "config": SPEECH | {"num_hidden_layers": 4, "do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    },
    "encodec-24khz": {"num_filters": 4, "hidden_size": 16, "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0]},
    "dac-24khz": {
        "sampling_rate": 24000, "downsampling_ratios": [2, 4, 5, 8], "encoder_hidden_size": 4, "decoder_hidden_size": 32,
        "n_codebooks": 32, "codebook_dim": 4,
    },
    "mimi": {
        "hidden_size": 32, "num_filters": 8, "codebook_size": 2048, "codebook_dim": 16, "num_quantizers": 32,
        "vector_quantization_hidden_dimension": 16, "upsample_groups": 32, "num_hidden_layers": 1, "intermediate_size": 32,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 12,
    },
}  # fmt: skip
DISCRETE = [name for name in TINY if CARDS[name].spec.kind == "discrete"]


def bare(name: str) -> Any:
    """The class the adapter wraps, with random weights from a fixed seed and codebooks that differ."""
    arguments = dict(TINY[name])
    kind, family = arguments.pop("model_type", ""), CARDS[name].family
    torch.manual_seed(11)
    if family == "snac":
        module = importlib.import_module("snac").SNAC(
            **{**arguments, "attn_window_size": arguments["attn_window_size"] or None}
        )
    elif family == "speechtokenizer":
        module = importlib.import_module("tokbench.adapters.speechtokenizer").SpeechCodec(**arguments)
    elif family == "s3tokenizer":
        module = importlib.import_module("tokbench.adapters.nn.whisper_fsq").SpeechEncoder(**arguments)
    elif family == "oobleck":
        module = importlib.import_module("diffusers").AutoencoderOobleck(**arguments)
    elif kind == "higgs_audio_v2_tokenizer":
        module = higgs(arguments)
    else:
        prefix = {
            "xcodec": "Xcodec", "neucodec": "NeuCodec" if kind == "neucodec" else "Xcodec2",
            "pocket-tts": "PocketTTSAudioTokenizer", "vibevoice": "VibeVoiceAcousticTokenizer",
            "units": "WavLM" if kind == "wavlm" else "Hubert", "encodec": "Encodec", "dac": "Dac", "mimi": "Mimi",
        }[family]  # fmt: skip
        transformers = importlib.import_module("transformers")
        config = getattr(transformers, f"{prefix}Config")(**arguments.get("config", arguments))
        module = getattr(transformers, f"{prefix}Model")(config)
    for key, buffer in module.named_buffers():
        if key.endswith(("embed", "embed_sum")):
            buffer.normal_(std=0.3)
    return module.eval()


def higgs(arguments: Mapping[str, Any]) -> Any:
    """The library's own Higgs class, whose file imports torchaudio for its resampler: ours stands in for it."""
    home = "transformers.models.higgs_audio_v2_tokenizer"
    for neighbour in ("xcodec.modeling_xcodec", "hubert.modeling_hubert", "dac.modeling_dac"):
        importlib.import_module(f"transformers.models.{neighbour}")
    with pytest.MonkeyPatch.context() as patch:
        stand_in = types.ModuleType("torchaudio")
        stand_in.functional = types.SimpleNamespace(resample=resample)  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "torchaudio", stand_in)
        module = importlib.import_module(f"{home}.modeling_higgs_audio_v2_tokenizer")
    config = importlib.import_module(f"{home}.configuration_higgs_audio_v2_tokenizer")
    return module.HiggsAudioV2TokenizerModel(config.HiggsAudioV2TokenizerConfig(**arguments))


def adapter(name: str, state: Mapping[str, Tensor], folder: Path, query: str = "") -> Any:
    """The adapter as a user gets it, at an operating point of its card."""
    card = at_point(CARDS[name], parse_options(query))
    card = replace(card, architecture=TINY[name])
    if card.family == "oobleck":  # as many latents as half of the encoder's width
        card = replace(card, spec=replace(card.spec, latent_channels=4))
    path = folder / "model.safetensors"
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    paths = {"model": path}
    if card.family == "units":
        generator = torch.Generator().manual_seed(1)
        paths["centroids"] = folder / "centroids.npy"
        np.save(paths["centroids"], torch.randn(card.spec.codebook_size[0], 16, generator=generator).numpy())
    return build_tokenizer(card, paths)


def sound(rows: int, channels: int, samples: int) -> Tensor:
    return 0.2 * torch.randn(rows, channels, samples, generator=torch.Generator().manual_seed(samples))


def indices(code: Code) -> Tensor:
    return torch.stack([stream.indices for stream in code.streams], dim=1)


# ------------------------------------------------------------------------------------------------ cards and contract


@pytest.mark.parametrize(
    "name", sorted(set(CARDS) - {c for c in CARDS if CARDS[c].family in {"encodec", "dac", "mimi"}})
)
def test_card_is_complete(name: str) -> None:
    card = CARDS[name]
    assert card.status == "available"
    assert card.summary
    assert card.spec.input_range == (-1.0, 1.0)
    assert card.spec.sample_rate
    assert (card.spec.kind == "continuous") == (card.spec.latent_channels is not None)
    assert (card.spec.kind == "discrete") == bool(card.spec.codebook_size)
    assert [file.role for file in card.weights] == ["model"] + ["centroids"] * (card.family == "units")
    assert card.spec.encode_only == (card.family in {"units", "s3tokenizer"})


@pytest.mark.parametrize("name", sorted(set(TINY) - {"encodec-24khz", "dac-24khz", "mimi"}))
def test_the_contract_holds_with_random_weights(name: str, tmp_path: Path) -> None:
    tokenizer = adapter(name, bare(name).state_dict(), tmp_path)
    assert [item for item in check(tokenizer, Engine(), trained=False) if item.verdict == "fail"] == []


NOMINAL = {"snac-24khz": 0.984375, "snac-32khz": 1.875, "snac-44khz": 2.583984375}
"""kbit/s the publication states or its rates give; for the others it is the card's tokens a second times bits a token."""


@pytest.mark.parametrize("name", DISCRETE)
def test_the_rate_of_what_is_emitted_is_the_nominal_one_at_every_point(name: str, tmp_path: Path) -> None:
    state = bare(name).state_dict()
    card = CARDS[name]
    for point in card.points or ("",):
        tokenizer = adapter(name, state, tmp_path, point)
        nominal = at_point(card, parse_options(point)).spec
        rate = nominal.sample_rate or 0
        blocks = -(-rate // (nominal.downsample[0] if nominal.downsample else rate // 25))
        samples = blocks * (nominal.downsample[0] if nominal.downsample else rate // 25)
        item = Item("a", "a", sound(1, 1, samples)[0].numpy(), sample_rate=rate)
        if nominal.encode_only:
            code = tokenizer.encode(torch.from_numpy(item.signal)[None])
            found = sum(stream.indices.shape[1] for stream in code.streams) / (samples / rate)
        else:
            protocol = EvalProtocol("audio", AudioPrepare(rate), rounding="none")
            (sample,) = reconstruct(tokenizer, [item], protocol, Engine()).samples
            code, columns = sample.code, Rate()(sample)
            found = float(columns["tokens_per_second"][0])
            kbps = NOMINAL.get(name) or (nominal.token_rate or 0) * np.log2(nominal.codebook_size[0]) / 1000
            extra = np.log2(65536) * rate / samples / 1000 if card.family == "neucodec" else 0.0
            assert float(columns["kbps"][0]) == pytest.approx(kbps + extra, rel=1e-9)
        assert tuple(stream.codebook_size for stream in code.streams) == nominal.codebook_size
        assert tokenizer.spec.codebook_size == nominal.codebook_size
        assert tokenizer.spec.token_rate == nominal.token_rate
        if nominal.token_rate is not None:
            # X-Codec 2 and NeuCodec pad whole frames by one more.
            assert found - rate / samples * (card.family == "neucodec") == pytest.approx(nominal.token_rate, rel=1e-9)
        elif card.family == "units":
            assert found == (samples - 80) // 320 / (samples / rate)


# ------------------------------------------------------------------------------------------------------- discrete codecs


@pytest.mark.parametrize(("name", "length"), [("xcodec", 16000), ("xcodec-wavlm-mls", 9600), ("higgs-audio-v2", 19200)])
@pytest.mark.parametrize("bandwidth", [1.0, 2.0])
def test_xcodec_equals_the_library_to_the_bit(name: str, length: int, bandwidth: float, tmp_path: Path) -> None:
    module = bare(name)
    tokenizer = adapter(name, module.state_dict(), tmp_path, f"bandwidth={bandwidth:g}")
    assert tokenizer.spec.name == f"{name}?bandwidth={bandwidth:g}"
    x = sound(2, 1, length)
    with torch.no_grad():
        expected = module.encode(x, bandwidth=bandwidth).audio_codes
        signal = module.decode(expected).audio_values
    code = tokenizer.encode(x)
    assert torch.equal(indices(code), expected)
    assert expected.unique().numel() > expected.shape[1]
    assert torch.equal(tokenizer.decode(code), signal)
    assert signal.shape == x.shape
    with pytest.raises(ValueError, match="multiples of"):
        tokenizer.encode(sound(1, 1, length + 1))
    with pytest.raises(ValueError, match="streams"):
        tokenizer.decode(Code(code.streams[:1]))


def test_xcodec_lower_bandwidths_are_prefixes_and_training_parts_may_be_absent(tmp_path: Path) -> None:
    module = bare("xcodec")
    state = {
        key: value
        for key, value in module.state_dict().items()
        if not key.endswith(("inited", "cluster_size", "embed_avg"))
        and not key.startswith(("decoder_semantic.", "fc1."))
    }
    assert len(state) < len(module.state_dict())
    x = sound(1, 1, 6400)
    low, high = (adapter("xcodec", state, tmp_path, f"bandwidth={b}").encode(x) for b in (0.5, 4))
    assert (len(low.streams), len(high.streams)) == (1, 8)
    assert torch.equal(indices(low), indices(high)[:, :1])


def test_neucodec_hears_16_khz_and_speaks_24_of_the_length_it_was_given(tmp_path: Path) -> None:
    module = bare("neucodec")
    tokenizer = adapter("neucodec", module.state_dict(), tmp_path)
    assert tokenizer.spec.sample_rate == 24_000
    for length, frames in ((24_000, 51), (23_998, 50), (7201, 16)):
        code = tokenizer.encode(sound(2, 1, length))
        assert indices(code).shape == (2, 1, frames)
        assert code.side_bits == 0
        decoded = tokenizer.decode(code)
        assert decoded.shape == (2, 1, length)
        with torch.no_grad():
            expected = module.decode(audio_codes=indices(code)).audio_values
        assert torch.equal(decoded, expected[..., :length])
        assert expected.shape[-1] == 480 * frames


@pytest.mark.parametrize(("source", "target"), [(24_000, 16_000), (16_000, 24_000), (44_100, 16_000), (16_000, 16_000)])
def test_the_resampler_of_two_rate_networks_is_the_engines(source: int, target: int) -> None:
    x = sound(2, 1, 4001).double()
    expected = resample(x, source, target)
    found = resampled(x, source, target)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_encodec_has_a_chunk_axis_that_streams_do_not(tmp_path: Path) -> None:
    module = bare("encodec-24khz")
    tokenizer = adapter("encodec-24khz", module.state_dict(), tmp_path, "bandwidth=6")
    x = sound(2, 1, 24_001)
    with torch.no_grad():
        codes = module.encode(x, bandwidth=6.0).audio_codes
    assert codes.shape == (1, 2, 8, 76)
    assert torch.equal(indices(tokenizer.encode(x)), codes[0])


def test_dac_decodes_eight_samples_fewer_and_the_engine_says_so(tmp_path: Path) -> None:
    tokenizer = adapter("dac-24khz", bare("dac-24khz").state_dict(), tmp_path, "num_codebooks=2")
    assert tokenizer.decode(tokenizer.encode(sound(1, 1, 24_000))).shape[-1] == 24_000 - 8
    item = Item("a", "a", sound(1, 1, 24_000)[0].numpy(), sample_rate=24_000)
    done = reconstruct(tokenizer, [item], EvalProtocol("audio", AudioPrepare(), rounding="none"), Engine())
    assert done.length_error == -8
    assert done.samples[0].raw.shape == (1, 1, 24_000)


def test_snac_streams_are_ragged_and_rows_are_seeded_by_their_key(tmp_path: Path) -> None:
    tokenizer = adapter("snac-44khz", bare("snac-44khz").state_dict(), tmp_path)
    code = tokenizer.encode(sound(1, 1, 2 * 12288))
    assert [stream.indices.shape[1] for stream in code.streams] == [8, 16, 32, 64]
    protocol = EvalProtocol("audio", AudioPrepare(None), rounding="none")

    def run(key: str) -> Tensor:
        item = Item(key, key, sound(1, 1, 5000)[0].numpy(), sample_rate=44_100)
        return reconstruct(tokenizer, [item], protocol, Engine()).samples[0].raw

    assert run("a").shape == (1, 1, 5000)
    assert torch.equal(run("a"), run("a"))
    assert not torch.equal(run("a"), run("b"))
    with pytest.raises(NotApplicable, match="float32 only"):
        tokenizer.to("cpu", "bfloat16")


# ------------------------------------------------------------------------------------------------------------ continuous


@pytest.mark.parametrize(("name", "frames"), [("pocket-tts", 4), ("vibevoice-acoustic", 3), ("stable-audio-vae", 3)])
def test_continuous_codecs_equal_the_library_to_the_bit(name: str, frames: int, tmp_path: Path) -> None:
    module = bare(name)
    tokenizer = adapter(name, module.state_dict(), tmp_path)
    hop = tokenizer.spec.downsample[0]
    x = sound(2, tokenizer.spec.channels, hop * frames)
    with torch.no_grad():
        if name == "vibevoice-acoustic":
            expected = module(x, sample=False).audio
        else:
            expected = module(x).sample if name == "stable-audio-vae" else module(x).audio_values
    code = tokenizer.encode(x)
    assert code.latents is not None
    assert code.latents.shape == (2, tokenizer.spec.latent_channels, frames)
    assert torch.equal(tokenizer.encode(x).latents, code.latents)
    assert torch.equal(tokenizer.decode(code), expected)
    assert expected.shape == x.shape
    with pytest.raises(ValueError, match="multiples of"):
        tokenizer.encode(x[..., :-1])
    with pytest.raises(ValueError, match="has none"):
        tokenizer.decode(Code())


@pytest.mark.parametrize("name", ["pocket-tts", "vibevoice-acoustic"])
def test_causal_codecs_are_safe_to_pad(name: str, tmp_path: Path) -> None:
    tokenizer = adapter(name, bare(name).state_dict(), tmp_path)
    assert tokenizer.spec.padding_safe
    hop = tokenizer.spec.downsample[0]
    x = sound(1, 1, 5 * hop)
    padded = torch.cat([x[..., : 2 * hop], torch.zeros(1, 1, 3 * hop)], dim=-1)
    alone, within = (tokenizer.encode(signal).latents for signal in (x[..., : 2 * hop], padded))
    torch.testing.assert_close(within[..., :2], alone, atol=1e-5, rtol=0)
    decoded = tokenizer.decode(Code(latents=tokenizer.encode(x).latents[..., :2]))
    torch.testing.assert_close(decoded, tokenizer.decode(tokenizer.encode(x))[..., : 2 * hop], atol=1e-5, rtol=0)
    assert decoded.std() > 0


# ----------------------------------------------------------------------------------------------------------- encode-only


@pytest.mark.parametrize(("name", "blocks"), [("hubert-base-l6-km50", 1), ("wavlm-large-l7-km1000", 2)])
def test_units_are_the_nearest_centroids_of_the_layer(name: str, blocks: int, tmp_path: Path) -> None:
    module = bare(name)
    tokenizer = adapter(name, module.state_dict(), tmp_path)
    assert len(tokenizer._module.encoder.layers) == blocks
    x = sound(2, 1, 16_000)
    heard = x[:, 0]
    if TINY[name].get("normalize"):
        heard = (heard - heard.mean(1, keepdim=True)) / (heard.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    with torch.no_grad():
        features = module(heard, output_hidden_states=True).hidden_states[1]
    centroids = torch.from_numpy(np.load(tmp_path / "centroids.npy"))
    expected = torch.cdist(features, centroids[None].expand(2, -1, -1)).argmin(-1)
    (stream,) = tokenizer.encode(x).streams
    assert stream.codebook_size == CARDS[name].spec.codebook_size[0]
    assert stream.indices.shape == (2, 49)
    assert (stream.indices == expected).float().mean() > 0.97  # cdist rounds otherwise: near-ties may fall differently
    assert stream.indices.unique().numel() > 5
    with pytest.raises(NotApplicable, match="no decoder"):
        tokenizer.decode(tokenizer.encode(x))
    with pytest.raises(NotApplicable, match="needs 400 samples"):
        tokenizer.encode(x[..., :399])


def test_centroids_in_a_pickle_or_of_another_shape_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "km.bin").write_bytes(b"\x80\x04")
    with pytest.raises(WeightsRefused, match=r"pickles are not opened.*joblib\.load"):
        centroids_of(tmp_path / "km.bin", 4, 3)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(WeightsRefused, match="not a plain array"):
        centroids_of(tmp_path / "objects.npy", 4, 3)
    np.save(tmp_path / "km.npy", np.zeros((4, 2)))
    with pytest.raises(WeightsRefused, match=r"\(4, 2\), not \(4, 3\)"):
        centroids_of(tmp_path / "km.npy", 4, 3)
    table = torch.arange(12.0).reshape(4, 3)
    save_file({"centroids": table}, tmp_path / "km.safetensors")
    assert torch.equal(centroids_of(tmp_path / "km.safetensors", 4, 3), table)


def test_s3tokenizer_reads_its_weights_from_the_published_kind_of_graph(tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    module = bare("s3tokenizer-v2-25hz")
    fixed = {
        "encoder.conv1.weight": "onnx::Conv_2216", "encoder.conv1.bias": "onnx::Conv_2217",
        "encoder.conv2.weight": "onnx::Conv_2218", "encoder.conv2.bias": "onnx::Conv_2219",
        "quantizer._codebook.project_down.weight": "onnx::MatMul_2536",
        "quantizer._codebook.project_down.bias": "quantizer.project_in.bias",
    }  # fmt: skip
    nodes, tensors = [], []
    for number, (key, value) in enumerate(module.state_dict().items()):
        name = fixed.get(key, f"onnx::W_{number}")
        array = (value.t() if value.ndim == 2 else value).contiguous().numpy()
        tensors.append(numpy_helper.from_array(array, name))
        stem, _, last = key.removeprefix("encoder.").rpartition(".")
        stem = stem.replace("mlp.0", "mlp.mlp.0").replace("mlp.2", "mlp.mlp.2")
        path = stem.replace(".", "/").replace("blocks/", "blocks.").replace("mlp/mlp/", "mlp/mlp.")
        if not stem.endswith("_ln"):
            kind = "Conv" if "conv" in stem or "fsmn" in stem else {"weight": "MatMul", "bias": "Add"}[last]
            nodes.append(helper.make_node(kind, ["x", name], ["y"], f"/{path}/{kind}"))
        elif last == "weight":
            inputs = ["x", name, f"onnx::W_{number + 1}"]
            nodes.append(helper.make_node("LayerNormalization", inputs, ["y"], f"/{path}/LayerNormalization"))
    nodes.append(helper.make_node("Reshape", ["x", "a_shape"], ["y"], "/Reshape_1"))
    tensors.append(numpy_helper.from_array(np.array([1, 2]), "a_shape"))
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    onnx.save(helper.make_model(graph), str(tmp_path / "speech_tokenizer_v2.onnx"))
    found = state_of_onnx(tmp_path / "speech_tokenizer_v2.onnx", "s3")
    expected = module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(WeightsRefused, match="not a readable ONNX graph"):
        state_of_onnx(tmp_path / "broken.onnx", "s3")


def test_s3tokenizer_joins_windows_of_thirty_seconds(tmp_path: Path) -> None:
    windows = [torch.arange(750)[None], torch.arange(1000, 1750)[None], torch.arange(2000, 2200)[None]]
    joined = merged(windows)[0].tolist()
    assert joined == [*range(700), *range(1050, 1700), *range(2050, 2200)]
    tokenizer = adapter("s3tokenizer-v2-25hz", bare("s3tokenizer-v2-25hz").state_dict(), tmp_path)
    x = sound(1, 1, 31 * 16_000)
    (stream,) = tokenizer.encode(x).streams
    assert stream.indices.shape == (1, 31 * 25)
    # Only the first window decides the tokens before the first seam.
    changed = x.clone()
    changed[..., 30 * 16_000 + 400 :] *= -1
    assert torch.equal(tokenizer.encode(changed).streams[0].indices[:, :700], stream.indices[:, :700])


def test_a_card_of_every_available_family_is_tried_here() -> None:
    assert {card.family for card in CARDS.values()} == {CARDS[name].family for name in TINY}
