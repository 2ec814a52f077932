"""Sound codecs with networks of their own against what their official code computed from the same seeded weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from keytable import expand
from safetensors.torch import save_file
from seeded import seeded_audio, seeded_tensor
from torch import Tensor

from tokbench.adapters.audiodec import AudioDec
from tokbench.adapters.bigcodec import BigCodec
from tokbench.adapters.focalcodec import FocalCodec
from tokbench.adapters.hh_codec import HhCodec
from tokbench.adapters.nn import checkpoint, network
from tokbench.adapters.sq_codec import SqCodec
from tokbench.adapters.wavtokenizer import WavTokenizer
from tokbench.adapters.xy_tokenizer import XyTokenizer
from tokbench.catalog import at_point, read_catalog
from tokbench.contract import check
from tokbench.errors import NotApplicable, UsageError
from tokbench.metrics.rate import Rate
from tokbench.reconstruct import Engine
from tokbench.registry import build_tokenizer
from tokbench.spec import Card
from tokbench.types import Code, LatentNeighbours, LatentSource, Neighbouring, Sample, Stream

ROOT = Path(__file__).parents[3]
GOLDENS = ROOT / "tests" / "parity" / "tokenizers"
NAMES = ("bigcodec", "focalcodec-50hz", "hh-codec", "wavtokenizer-small-75", "xy-tokenizer")
CATALOGS = ("audiodec", "bigcodec", "focalcodec", "hh_codec", "wavtokenizer", "xy_tokenizer")
CARDS = {
    card.name: card
    for catalog in CATALOGS
    for card in read_catalog(ROOT / "adapters" / f"{catalog}.toml")
    if card.status != "planned"
}
SQ_CODEC = read_catalog(ROOT / "adapters" / "sq_codec.toml")[0]  # its architecture is in a file of its own
KINDS: Mapping[str, Callable[..., Any]] = {
    "audiodec": AudioDec, "bigcodec": BigCodec, "focalcodec": FocalCodec, "hh-codec": HhCodec, "wavtokenizer": WavTokenizer,
    "xy-tokenizer": XyTokenizer,
}  # fmt: skip
# What each golden recorded as `latents`: the encoder's output; FocalCodec's at unit length.
LATENTS: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "bigcodec": lambda module, x: module.encoder(x).transpose(1, 2),
    "focalcodec-50hz": lambda module, x: F.normalize(module.latents(x), dim=-1),
    "hh-codec": lambda module, x: module.encoder(x).transpose(1, 2),
    "wavtokenizer-small-75": lambda module, x: module.encoder(x).transpose(1, 2),
    "xy-tokenizer": lambda module, x: module.latents(x),
}

# The cards that decode with each decoder AudioDec's golden recorded.
DECODERS = {
    "sym": "audiodec-libritts-24khz-sym", "v0": "audiodec-vctk-48khz-v0", "v1": "audiodec-libritts-24khz"
}  # fmt: skip


class Golden:
    """One recorded codec: meta data, arrays, key tables and the card it proves."""

    def __init__(self, name: str) -> None:
        folder = GOLDENS / name
        self.name = name
        self.meta: dict[str, Any] = json.loads((folder / "golden.json").read_text())
        self.arrays = {key: torch.from_numpy(value) for key, value in np.load(folder / "golden.npz").items()}
        tables = json.loads((folder / "keys.json").read_text())
        self.tiny, self.full = expand(tables["tiny"]), expand(tables["full"])
        assert len(self.full) == tables["count"]
        self.card = at_point(CARDS[self.meta.get("card", DECODERS["v1"])], {})

    def tiny_card(self, card: Card | None = None) -> Card:
        """Return the card at the recorded size; of another card of the family its strides are kept."""
        base = card or self.card
        own = {key: value for key, value in base.architecture.items() if key in {"strides", "down"}}
        if "vocoder" in base.architecture:
            own["vocoder"] = {**base.architecture["vocoder"], "width": 64}
        size = (self.meta["codebook_size"],) * len(base.spec.codebook_size)
        architecture = {**self.meta["architecture"], **own}
        if "depth" in architecture:
            architecture["depth"] = len(size)
        return replace(base, architecture=architecture, spec=replace(base.spec, codebook_size=size))

    def state(self) -> dict[str, Tensor]:
        """Return the seeded weights, with what the authors' file holds beside them."""
        state = {key: seeded_tensor(key, *entry) for key, entry in self.tiny.items()}
        return state | {key: torch.ones(3) for key in self.meta["extra"]}

    def build(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> Any:
        """Write the state as the authors' file is laid out and load it."""
        content: Any = dict(self.state() if state is None else state)
        path = folder / f"model{self.meta.get('suffix', '.pt')}"
        if path.suffix == ".safetensors":
            save_file(content, path)
            return build_tokenizer(self.tiny_card(), {"model": path})
        if "parts" in self.meta:
            content = {
                part: {key.removeprefix(part + "."): value for key, value in content.items() if key.startswith(part)}
                for part in self.meta["parts"]
            }
        for key in reversed(self.meta.get("container", [])):
            content = {key: content, "epoch": 3}
        torch.save(content, path)
        return build_tokenizer(self.tiny_card(), {"model": path})

    def signal(self, suffix: str) -> Tensor:
        """Return a recorded input as the official script gives it to its encoder."""
        x = seeded_audio(*self.meta["signals"][suffix])
        return F.pad(x, (0, 200 - x.shape[-1] % 200)) if self.name == "bigcodec" else x

    def code(self, suffix: str) -> Code:
        rows = self.arrays[f"indices{suffix}"].long().unbind(1)
        return Code(tuple(Stream(str(k), self.meta["codebook_size"], row) for k, row in enumerate(rows)))


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    assert expected.std() > 10 * atol
    torch.testing.assert_close(actual.float(), expected, atol=atol, rtol=0)


def stacked(code: Code) -> Tensor:
    return torch.stack([stream.indices for stream in code.streams], dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_equals_official_code(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    tokenizer, atol = golden.build(tmp_path), golden.meta["atol"]
    with torch.no_grad():
        close(LATENTS[name](tokenizer._module, golden.signal("")), golden.arrays["latents"], atol)
    for suffix in ("", "_ragged"):
        x, recorded = golden.signal(suffix), golden.arrays[f"indices{suffix}"].long()
        assert recorded.unique().numel() > 5
        if name == "focalcodec-50hz":  # the adapter pads, see below; the official code does not
            with torch.no_grad():
                assert torch.equal(tokenizer._module.tokens(x)[:, None], recorded)
        else:
            assert torch.equal(stacked(tokenizer.encode(x)), recorded)
        decoded = tokenizer.decode(golden.code(suffix))
        assert decoded.shape == (len(x), 1, recorded.shape[-1] * tokenizer.spec.downsample[0])
        close(decoded[..., :: golden.meta["stride"]], golden.arrays[f"reconstruction{suffix}"], atol)


@pytest.mark.parametrize("name", NAMES)
def test_full_configuration_has_the_published_keys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(name)
    seen: dict[str, Any] = {}

    def load_state(path: Path, *, inside: tuple[str, ...] = ()) -> dict[str, Tensor]:
        prefix = f"{inside[0]}." if inside and "parts" in golden.meta else ""
        names = [key for key in golden.full if key.startswith(prefix)]
        return {key.removeprefix(prefix): torch.empty(golden.full[key][0], device="meta") for key in names}

    def load_into(module: Any, state: Mapping[str, Tensor], **_: Any) -> None:
        seen.update(module=module, state=state)

    monkeypatch.setattr(checkpoint, "load_into", load_into)
    for room in (network, importlib.import_module(golden.card.target.partition(":")[0])):
        monkeypatch.setattr(room, "load_state", load_state, raising=False)
    build_tokenizer(golden.card, {"model": Path("model.ckpt")})
    built = {key: tuple(value.shape) for key, value in seen["module"].state_dict().items()}
    assert built == {key: tuple(value.shape) for key, value in seen["state"].items()}
    held = sum(value.numel() for value in seen["module"].parameters() if not value.is_meta)
    assert held < 1e-3 * sum(value.numel() for value in seen["module"].parameters())


@pytest.mark.parametrize("name", NAMES)
def test_obeys_the_contract(name: str, tmp_path: Path) -> None:
    found = check(Golden(name).build(tmp_path), Engine(device="cpu"), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []
    assert {item.name for item in found} >= {
        "code",
        "capabilities",
        "deterministic",
        "batch = single",
        "rate",
        "length",
    }


def filled(module: Any) -> Any:
    """Give a new network seeded weights."""
    module.load_state_dict({key: seeded_tensor(key, tuple(value.shape)) for key, value in module.state_dict().items()})
    return module.eval()


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_emitted_rate_is_the_nominal_one(card: Card) -> None:
    golden = next(golden for golden in map(Golden, (*NAMES, "audiodec")) if golden.card.target == card.target)
    tiny = golden.tiny_card(card)
    tokenizer = network.NetworkTokenizer(tiny.spec, filled(KINDS[card.family](**tiny.architecture)))
    x = seeded_audio(card.name, 1, 16 * card.spec.downsample[0], card.spec.sample_rate or 0)
    code = tokenizer.encode(x)
    streams = tuple(
        replace(stream, codebook_size=size) for stream, size in zip(code.streams, card.spec.codebook_size, strict=True)
    )
    out = Rate()(Sample(("k",), x, x, x, Code(streams), card.spec, sample_rate=card.spec.sample_rate))
    assert out["tokens_per_second"].item() == pytest.approx(card.spec.token_rate, rel=1e-9)
    assert tokenizer.decode(code).shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_change_every_token_and_what_was_seen_is_nearest(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    tokenizer = golden.build(tmp_path)
    assert isinstance(tokenizer, Neighbouring)
    assert isinstance(tokenizer, LatentSource)
    x = golden.signal("")[:, :, :6400]
    code = tokenizer.encode(x)
    streams = []
    for stream in code.streams:
        near, flat = tokenizer.neighbours(stream.codebook), stream.indices.flatten()
        other = near.choose(flat, 3, torch.linspace(0, 0.99, len(flat), dtype=torch.float64))
        assert ((other != flat) & (other >= 0) & (other < stream.codebook_size)).all()
        streams.append(replace(stream, indices=other.view_as(stream.indices)))
        if "unquantized" not in tokenizer.spec.capabilities:
            with pytest.raises(NotApplicable):
                tokenizer.unquantized(x, stream.codebook)
            continue
        seen = tokenizer.unquantized(x, stream.codebook)
        assert seen.shape[:-1] == stream.indices.shape
        if isinstance(near, LatentNeighbours):
            found = near.choose_near(seen.flatten(0, -2), 1, torch.zeros(len(flat), dtype=torch.float64))
            assert torch.equal(found, flat)
        else:
            bits = torch.stack([flat >> k & 1 for k in range(12, -1, -1)], dim=-1)
            assert torch.equal(bits, (seen.flatten(0, -2) > 0).long())
    assert not torch.equal(tokenizer.decode(replace(code, streams=tuple(streams))), tokenizer.decode(code))


def test_xy_windows_equal_official_code(tmp_path: Path) -> None:
    golden = Golden("xy-tokenizer")
    tokenizer = golden.build(tmp_path)
    assert torch.equal(stacked(tokenizer.encode(golden.signal("_long"))), golden.arrays["indices_long"].long())
    close(tokenizer.decode(golden.code("_long"))[..., ::64], golden.arrays["reconstruction_long"], 1e-4)


def test_xy_takes_a_bare_state_dict(tmp_path: Path) -> None:
    golden = Golden("xy-tokenizer")
    golden.meta["container"] = []
    tokenizer = golden.build(tmp_path)
    assert torch.equal(stacked(tokenizer.encode(golden.signal("_ragged"))), golden.arrays["indices_ragged"].long())


def test_bigcodec_takes_a_converted_file(tmp_path: Path) -> None:
    golden = Golden("bigcodec")
    golden.meta["suffix"] = ".safetensors"
    tokenizer = golden.build(tmp_path)
    assert torch.equal(stacked(tokenizer.encode(golden.signal("_ragged"))), golden.arrays["indices_ragged"].long())


def test_hh_codec_takes_the_moving_averages(tmp_path: Path) -> None:
    golden = Golden("hh-codec")
    state = {key: value for key, value in golden.state().items() if key != "model_ema.decay"}
    averages = {"model_ema." + key.replace(".", ""): value for key, value in state.items()}
    tokenizer = golden.build(tmp_path, {key: torch.zeros_like(value) for key, value in state.items()} | averages)
    assert torch.equal(stacked(tokenizer.encode(golden.signal("_ragged"))), golden.arrays["indices_ragged"].long())


def first_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return FocalCodec's weights as its first release named them, with the norm behind WavLM that is not used."""
    out = {"encoder.encoder.norm.weight": torch.ones(32), "encoder.encoder.norm.bias": torch.zeros(32)}
    numbers = {
        "compressor": {"downscale": "0", "focal_block": "1"}, "decompressor": {"focal_block": "0", "upscale": "1"}
    }  # fmt: skip
    for key, value in state.items():
        tower, _, rest = key.partition(".layers.")
        if "qkv_proj" in key:
            out |= {key.replace("qkv", part): third.clone() for part, third in zip("qkv", value.chunk(3), strict=True)}
        elif tower in numbers and rest:
            layer, name, tail = rest.split(".", 2)
            out[f"{tower}.layers.{layer}.{numbers[tower][name]}.{tail}"] = value
        else:
            out[key] = value
    return out


def test_focalcodec_takes_a_file_of_the_first_release(tmp_path: Path) -> None:
    golden = Golden("focalcodec-50hz")
    state = first_release(golden.state())
    # The official loader pairs the towers' keys of the two releases by their places in alphabetical order.
    for tower in ("compressor.", "decompressor."):
        old = [state[key] for key in sorted(state) if key.startswith(tower)]
        new = [value for key, value in sorted(golden.state().items()) if key.startswith(tower)]
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    tokenizer = golden.build(tmp_path, state)
    with torch.no_grad():
        tokens = tokenizer._module.tokens(golden.signal(""))[:, None]
    assert torch.equal(tokens, golden.arrays["indices"].long())
    close(tokenizer.decode(golden.code(""))[..., ::4], golden.arrays["reconstruction"], 1e-4)


def test_focalcodec_gives_the_last_stride_a_token(tmp_path: Path) -> None:
    golden = Golden("focalcodec-50hz")
    tokenizer, x = golden.build(tmp_path), golden.signal("")
    with torch.no_grad():
        official = tokenizer._module.tokens(F.pad(x, (0, 80)))[:, None]
    assert golden.arrays["indices"].shape[-1] == x.shape[-1] // 320 - 1
    assert official.shape[-1] == x.shape[-1] // 320
    assert torch.equal(stacked(tokenizer.encode(x)), official)


@pytest.mark.parametrize(
    ("name", "megabytes"), [("focalcodec-50hz", 569), ("focalcodec-25hz", 577), ("focalcodec-12.5hz", 581)]
)
def test_focalcodec_has_the_size_of_the_published_file(name: str, megabytes: int) -> None:
    built = checkpoint.skeleton(lambda: FocalCodec(**CARDS[name].architecture)).state_dict()
    assert round(4 * sum(value.numel() for value in built.values()) / 1e6) == megabytes


def audiodec(golden: Golden, decoder: str, folder: Path) -> Any:
    """Write the two files AudioDec is loaded from and load it with one of the recorded decoders."""
    parts: dict[str, dict[str, Tensor]] = {"autoencoder": {}, "vocoder_v0": {}, "vocoder_v1": {}}
    for key, entry in golden.tiny.items():
        part, _, name = key.partition(".")
        parts[part][name] = seeded_tensor(key, *entry)
    for state in parts.values():
        state["decoder.conv2.pad_buffer" if "encoder.conv.conv.weight" in state else "input_conv.pad_buffer"] = (
            torch.ones(1, 2, 6)
        )
    parts["autoencoder"]["quantizer.codebook.layers.0.cluster_size"] = torch.ones(64)
    parts["autoencoder"]["quantizer.codebook.layers.0.embed_avg"] = torch.ones(8, 64)
    paths = {"encoder": folder / "sender.pkl", "decoder": folder / "receiver.pkl"}
    torch.save({"model": {"generator": parts["autoencoder"]}, "steps": 500000}, paths["encoder"])
    receiver = parts["autoencoder" if decoder == "sym" else f"vocoder_{decoder}"]
    torch.save({"model": {"generator": receiver}, "steps": 500000}, paths["decoder"])
    base = at_point(CARDS[DECODERS[decoder]], {})
    architecture = dict(golden.meta["architecture"])
    if decoder != "sym":
        architecture["vocoder"] = golden.meta["vocoder"][decoder]
    rate = 4 * (base.spec.sample_rate or 0) / 300
    spec = replace(base.spec, codebook_size=(64,) * 4, token_rate=rate)
    card = replace(base, architecture=architecture, spec=spec)
    return build_tokenizer(card, paths)


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_audiodec_equals_official_code(decoder: str, tmp_path: Path) -> None:
    golden = Golden("audiodec")
    tokenizer = audiodec(golden, decoder, tmp_path)
    with torch.no_grad():
        close(tokenizer._module.latents(golden.signal("")), golden.arrays["latents"], 1e-4)
    for suffix in ("", "_ragged"):
        x, recorded = golden.signal(suffix), golden.arrays[f"indices{suffix}"].long()
        assert recorded.unique().numel() > 20
        assert torch.equal(stacked(tokenizer.encode(x)), recorded)
        decoded = tokenizer.decode(golden.code(suffix))
        assert decoded.shape == (len(x), 1, recorded.shape[-1] * 300)
        atol = 1e-4 if decoder == "sym" else 1e-5
        close(decoded[..., ::4], golden.arrays[f"reconstruction_{decoder}{suffix}"], atol)


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_audiodec_full_configuration_has_the_published_keys(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden, seen = Golden("audiodec"), dict[str, Any]()

    def load_state(path: Path, *, inside: tuple[str, ...] = ()) -> dict[str, Tensor]:
        assert inside == ("model", "generator")
        part = f"{path.name}."
        names = [key for key in golden.full if key.startswith(part)]
        return {key.removeprefix(part): torch.empty(golden.full[key][0], device="meta") for key in names}

    monkeypatch.setattr(checkpoint, "load_into", lambda module, state, **_: seen.update(module=module, state=state))
    monkeypatch.setattr("tokbench.adapters.audiodec.load_state", load_state)
    receiver = Path("autoencoder" if decoder == "sym" else f"vocoder_{decoder}")
    build_tokenizer(at_point(CARDS[DECODERS[decoder]], {}), {"encoder": Path("autoencoder"), "decoder": receiver})
    built = {key: tuple(value.shape) for key, value in seen["module"].state_dict().items()}
    assert built == {key: tuple(value.shape) for key, value in seen["state"].items()}


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_audiodec_obeys_the_contract(decoder: str, tmp_path: Path) -> None:
    found = check(audiodec(Golden("audiodec"), decoder, tmp_path), Engine(device="cpu"), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []


def test_audiodec_codes_a_padded_clip_as_it_does_alone(tmp_path: Path) -> None:
    tokenizer = audiodec(Golden("audiodec"), "v1", tmp_path)
    x = seeded_audio("audiodec-padded", 1, 6000, 24000)
    alone, padded = tokenizer.encode(x), tokenizer.encode(F.pad(x, (0, 5100)))
    assert torch.equal(stacked(padded)[..., :20], stacked(alone))
    torch.testing.assert_close(tokenizer.decode(padded)[..., :6000], tokenizer.decode(alone), atol=1e-6, rtol=0)


def sq_codec(golden: Golden, folder: Path, **changed: Any) -> Any:
    """Write SQ-Codec's configuration and checkpoint and load them."""
    generator = {**golden.meta["generator"], **changed}
    first = next(key for key in golden.tiny if key.endswith("down_conv.activation.weight"))
    state = {
        key: seeded_tensor(first if key.endswith("down_conv.activation.weight") else key, *entry)
        for key, entry in golden.tiny.items()
    }
    paths = {"model": folder / "ckpt_00190000.pth", "config": folder / "config.yaml"}
    paths["config"].write_text(json.dumps({"generator": {"name": "scalar", "config": generator}}))
    torch.save({"codec_model": state, "epoch": 9}, paths["model"])
    return build_tokenizer(at_point(SQ_CODEC, {}), paths)


@pytest.mark.parametrize("suffix", ["", "_both"], ids=["causal", "both ways"])
def test_sq_codec_equals_official_code(suffix: str, tmp_path: Path) -> None:
    golden = Golden("sq-codec")
    tokenizer = sq_codec(golden, tmp_path, causal=not suffix)
    with torch.no_grad():
        latents = tokenizer._module.latents(golden.signal("")).transpose(1, 2)
    close(latents, golden.arrays[f"latents{suffix}"], 1e-4)
    for clip in ("", "_ragged"):
        recorded = golden.arrays[f"indices{suffix}{clip}"].long()
        assert recorded.unique().numel() > 50
        assert torch.equal(stacked(tokenizer.encode(golden.signal(clip))), recorded)
        decoded = tokenizer.decode(golden.code(f"{suffix}{clip}"))
        # Seeded weights amplify: the recorded sound has a deviation of 70 to 100.
        close(decoded[..., ::4], golden.arrays[f"reconstruction{suffix}{clip}"], 1e-2)


def test_sq_codec_obeys_the_contract_at_its_nominal_rate(tmp_path: Path) -> None:
    tokenizer = sq_codec(Golden("sq-codec"), tmp_path)
    found = check(tokenizer, Engine(device="cpu"), trained=False)
    assert [item for item in found if item.verdict in {"fail", "warn"}] == []
    x = seeded_audio("sq-codec-rate", 1, 16000, 16000)
    out = Rate()(Sample(("k",), x, x, x, tokenizer.encode(x), tokenizer.spec, sample_rate=16000))
    assert out["tokens_per_second"].item() == tokenizer.spec.token_rate
    assert out["kbps"].item() == pytest.approx(2.853, abs=1e-3)


def test_sq_codec_has_the_surveyed_size() -> None:
    golden = Golden("sq-codec")
    shape = {"width": golden.meta["full_width"], "channels": 36, "pool": 2, "strides": (2, 4, 4, 5)}
    shape |= {"kernels": (4, 8, 8, 10), "up_strides": (5, 4, 4, 2), "up_kernels": (10, 8, 8, 4)}
    built = checkpoint.skeleton(lambda: SqCodec(**shape, kernel=7, ahead=5, inner=7, causal=True)).state_dict()
    published = {key: torch.empty(size, device="meta") for key, (size, _) in golden.full.items()}
    folded = checkpoint.weight_norm(published, built.keys())
    assert {key: value.shape for key, value in built.items()} == {key: value.shape for key, value in folded.items()}
    assert round(sum(value.numel() for value in published.values()) / 1e6, 1) == 23.5


def test_sq_codec_refuses_a_configuration_of_another_geometry(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has bands, sample rate, samples a frame, channels \(1, 16000, 320, 32\)"):
        sq_codec(Golden("sq-codec"), tmp_path, latent_hidden_dim=32)
    (tmp_path / "config.yaml").write_text("generator: {}")
    with pytest.raises(UsageError, match="is no configuration of SQ-Codec"):
        build_tokenizer(at_point(SQ_CODEC, {}), {"model": tmp_path / "x.pth", "config": tmp_path / "config.yaml"})
