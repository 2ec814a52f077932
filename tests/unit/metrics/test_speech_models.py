"""What a reader of predicted opinion scores, speaker similarity, error rates and FAD relies on, with and without weights."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeded import seeded_audio
from torch import Tensor

from tokbench.data import Item
from tokbench.errors import MissingExtra, NotApplicable, Undefined, UsageError, WeightsAbsent
from tokbench.evaluate import evaluate
from tokbench.metrics import _embeddings, fad, speaker, transcribe, utmos
from tokbench.metrics._listeners import plain
from tokbench.metrics._speech import mono_numpy, mono_rows
from tokbench.metrics.distillmos import DistillMos, windows
from tokbench.metrics.mos import Dnsmos, Plcmos
from tokbench.metrics.mos import windows as dnsmos_windows
from tokbench.metrics.speaker import Resemblyzer, speaker_resemblyzer, speaker_wavlm
from tokbench.metrics.transcribe import ErrorRates, wer_hubert, wer_pocketsphinx, wer_whisper
from tokbench.metrics.utmos import Utmos
from tokbench.reconstruct import Engine
from tokbench.registry import build_metric
from tokbench.resampler import resample_numpy
from tokbench.rows import Row
from tokbench.spec import AudioPrepare, EvalProtocol, Modality, TokenizerSpec
from tokbench.summarise import cells
from tokbench.types import Code, Detailed, Reading, RowWise, Sample, take_row
from tokbench.weights import WeightsRefused

RATE = 16_000

REGISTERED = (
    "dnsmos", "plcmos", "distillmos", "utmos", "speaker_resemblyzer", "speaker_wavlm", "speaker_wavlm_large",
    "wer_whisper", "wer_hubert", "wer_pocketsphinx", "fad_vggish", "fad_clap", "fad_crepe",
)  # fmt: skip


def sample(reference: Tensor, reconstruction: Tensor, rate: int = RATE, modality: Modality = "audio") -> Sample:
    spec = TokenizerSpec(name="t", modality=modality, kind="none")
    keys = tuple(f"k{i}" for i in range(reference.shape[0]))
    return Sample(keys, reference, reconstruction, reconstruction, Code(), spec, sample_rate=rate)


def sounds(name: str, rows: int, seconds: float, rate: int = RATE) -> Tensor:
    return torch.cat([seeded_audio(f"{name}{k}", 1, int(seconds * rate), rate) for k in range(rows)])


# ------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", REGISTERED)
def test_a_spec_needs_neither_weights_nor_libraries(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    metric = build_metric(name)
    assert metric.spec.name == name
    assert metric.spec.modalities == ("audio",)
    assert "absent" in json.dumps(metric.spec.protocol)
    x = sounds("absent", 1, 0.5)
    if name != "wer_pocketsphinx":  # which is looked for by importing it
        with pytest.raises((MissingExtra, WeightsAbsent)):
            ask(metric, sample(x, x))


def ask(metric: Any, batch: Sample) -> Any:
    """Ask a metric of any of the three kinds about a batch."""
    if isinstance(metric, RowWise):
        return metric.row(batch.reference[0].numpy(), batch.reconstruction[0].numpy(), batch.sample_rate)
    return metric.update({}, batch) if hasattr(metric, "update") else metric(batch)


@pytest.mark.parametrize("name", REGISTERED)
def test_pictures_are_not_heard(name: str) -> None:
    metric = build_metric(name)
    picture = sample(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), modality="image")
    if not isinstance(metric, RowWise):
        with pytest.raises((NotApplicable, WeightsAbsent)):
            ask(metric, picture)


def test_rows_are_mixed_and_resampled_alike_for_every_metric() -> None:
    x = torch.cat([sounds("left", 2, 0.3, 24_000), sounds("right", 2, 0.3, 24_000)], dim=1)
    batch = sample(x, 0.5 * x, 24_000)
    for side, rows in (("reference", x), ("reconstruction", 0.5 * x)):
        for k, row in enumerate(mono_rows("m", batch, side)):  # type: ignore[arg-type]
            expected = resample_numpy(rows[k].numpy().mean(0, dtype=np.float64).astype(np.float32), 24_000, RATE)
            assert np.array_equal(row.numpy(), expected)
            assert np.array_equal(mono_numpy(rows[k].numpy(), 24_000), expected)
    assert mono_rows("m", batch, "reference") is mono_rows("m", batch, "reference")  # one resampling a batch
    assert mono_rows("m", batch, "reference", 48_000)[0].shape == (14_400,)


# ------------------------------------------------------------------------------------------------------------ scores


def test_dnsmos_windows_are_those_of_the_published_script() -> None:
    assert dnsmos_windows(np.arange(10, dtype=np.float32)).shape == (1, 144_160)
    short = np.arange(80_000, dtype=np.float32)
    assert np.array_equal(dnsmos_windows(short)[0], np.concatenate([short, short])[:144_160])
    long = np.arange(RATE * 30, dtype=np.float32)
    assert [int(window[0]) // RATE for window in dnsmos_windows(long)] == [0, 1, 2, 3, 4, 5, 6]


def test_p835_follows_the_level_and_p808_does_not() -> None:
    x = sounds("level", 1, 1.0)[0].numpy()
    loud, soft = Dnsmos().row(x, x, RATE), Dnsmos().row(x, 0.1 * x, RATE)
    assert loud["dnsmos_p808"] == pytest.approx(soft["dnsmos_p808"], abs=1e-3)
    assert abs(loud["dnsmos_ovrl"] - soft["dnsmos_ovrl"]) > 0.01
    assert all(0.5 < value < 5 for value in loud.values())


def test_plcmos_hears_gaps_and_repeats_itself() -> None:
    x = sounds("gaps", 1, 2.0)[0].numpy()
    lost = x.copy()
    for start in range(3_000, 30_000, 5_000):
        lost[:, start : start + 1_500] = 0
    whole = Plcmos().row(x, x, RATE)["plcmos"]
    assert Plcmos().row(x, lost, RATE)["plcmos"] < whole
    assert Plcmos().row(x, x, RATE)["plcmos"] == whole
    assert Plcmos(seed=1).row(x, x, RATE)["plcmos"] != whole
    assert Plcmos(seed=1).spec.protocol != Plcmos().spec.protocol


@pytest.mark.parametrize("metric", [Dnsmos(), Plcmos()])
def test_an_empty_clip_is_undefined(metric: Dnsmos | Plcmos) -> None:
    empty = np.zeros((1, 0), np.float32)
    with pytest.raises(Undefined, match="no sample"):
        metric.row(empty, empty, RATE)
    with pytest.raises(UsageError, match="sample rate"):
        metric.row(empty, empty, None)
    silent = np.zeros((1, 8_000), np.float32)
    assert all(math.isfinite(value) for value in metric.row(silent, silent, RATE).values())


def test_distillmos_windows_cover_the_clip() -> None:
    wave = torch.linspace(0.1, 1.0, 150_000)
    cut = windows(wave)
    assert cut.shape == (3, 122_880)  # 27,120 samples to spare: three starts, at most a second apart
    torch.testing.assert_close(cut[1], wave[13_560 : 13_560 + 122_880] / wave[13_560 + 122_879])
    assert windows(wave[:100]).shape == (1, 122_880)
    assert windows(wave[:100])[0, 100:].abs().max() == 0


def test_distillmos_of_a_row_is_its_own() -> None:
    x = sounds("distil", 2, 0.5)
    metric, batch = DistillMos(), sample(x, x)
    both = metric(batch)["distillmos"]
    assert torch.equal(both[1:], metric(take_row(batch, 1))["distillmos"])
    quieter = metric(sample(x, 0.25 * x))["distillmos"]
    torch.testing.assert_close(both, quieter, atol=1e-3, rtol=0)
    assert math.isnan(metric(sample(x[..., :0], x[..., :0]))["distillmos"][0].item())


def test_utmos_reads_speechmos_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utmos, "Network", partial(utmos.Network, layers=1))
    path = tmp_path / "utmos22_strong_step7459_v1.pt"
    state = {key: torch.full(value.shape, 0.01) for key, value in utmos.Network().state_dict().items()}
    torch.save({**state, "wav2vec2.mask_emb": torch.zeros(768)}, path)
    metric = Utmos(weights=str(path))
    x = sounds("utmos", 2, 0.2)
    assert bool(torch.isfinite(metric(sample(x, x))["utmos"]).all())
    assert math.isnan(metric(sample(x[..., :399], x[..., :399]))["utmos"][0].item())
    assert "absent" not in json.dumps(metric.spec.protocol)


# ---------------------------------------------------------------------------------------------------------- speakers


def test_a_voice_is_itself_at_any_level_and_less_so_in_noise() -> None:
    x = sounds("voice", 3, 1.0)
    noisy = torch.cat([x[:1], 0.3 * x[1:2], x[2:] + 0.2 * torch.randn(1, 1, RATE, generator=torch.manual_seed(0))])
    out = speaker_resemblyzer()(sample(x, noisy))["speaker_resemblyzer"]
    assert out[0].item() == pytest.approx(1.0, abs=1e-6)
    assert out[1].item() > 0.9
    assert out[2] < out[0]
    silent = speaker_resemblyzer()(sample(x[:1], torch.zeros_like(x[:1])))["speaker_resemblyzer"]
    assert math.isnan(silent.item())
    assert "silent" in speaker_resemblyzer().undefined["speaker_resemblyzer"]


def test_the_vector_of_a_reference_is_read_once_and_survives_json(monkeypatch: pytest.MonkeyPatch) -> None:
    x = sounds("read", 2, 0.6)
    metric = speaker_resemblyzer()
    assert isinstance(metric, Reading)
    first = sample(x, 0.9 * x.roll(100, -1))
    before = metric(first)["speaker_resemblyzer"]
    kept = json.loads(json.dumps(first.readings))
    monkeypatch.setattr(speaker.SpeakerSimilarity, "read", lambda *_: pytest.fail("read again"))
    again = replace(sample(x, 0.9 * x.roll(100, -1)), readings=kept)
    assert torch.equal(metric(again)["speaker_resemblyzer"], before)


def test_partials_cover_a_clip_as_resemblyzer_has_it() -> None:
    for samples, expected in ((100, 1), (25_600, 1), (31_519, 1), (31_520, 2), (80_000, 5)):
        assert speaker.partials(torch.zeros(samples, dtype=torch.float64)).shape == (expected, 160, 40), samples
    assert Resemblyzer().embed(torch.zeros(0)) is None


# --------------------------------------------------------------------------------------- checkpoints of transformers


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Write a tiny WavLM, HuBERT, Whisper and CLAP with random weights, laid out as the published repositories are."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    trunk = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    }  # fmt: skip
    wavlm = transformers.WavLMConfig(**trunk, tdnn_dim=(16, 16, 16, 16, 32), xvector_output_dim=12)
    transformers.WavLMForXVector(wavlm).save_pretrained(root / "wavlm")
    hubert = transformers.HubertConfig(**trunk, vocab_size=32)
    transformers.HubertForCTC(hubert).save_pretrained(root / "hubert")
    for name in ("wavlm", "hubert"):
        transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / name)
    letters = ["<pad>", "<s>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    (root / "hubert/vocab.json").write_text(json.dumps({letter: k for k, letter in enumerate(letters)}))
    transformers.Wav2Vec2CTCTokenizer(str(root / "hubert/vocab.json")).save_pretrained(root / "hubert")
    _whisper(transformers, root / "whisper")
    clap = transformers.ClapConfig(
        audio_config={
            "hidden_size": 64, "patch_embeds_hidden_size": 8, "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2],
        },
        text_config={
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9,
        },
        projection_dim=16,
    )  # fmt: skip
    transformers.ClapModel(clap).save_pretrained(root / "clap")
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(root / "clap")
    return {path.name: path for path in root.iterdir()}


def _whisper(transformers: Any, folder: Path) -> None:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    marks = [*map(chr, printable), *(chr(256 + k) for k in range(len(others)))]
    tokenizer = transformers.WhisperTokenizer(vocab={mark: k for k, mark in enumerate(marks)}, merges=[])
    special = [
        "<|startoftranscript|>",
        "<|en|>",
        "<|transcribe|>",
        "<|translate|>",
        "<|startofprev|>",
        "<|notimestamps|>",
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens([f"<|{k * 0.02:.2f}|>" for k in range(1501)])
    tokenizer.save_pretrained(folder)
    (folder / "normalizer.json").write_text('{"colour": "color"}')
    start, english, transcribe_id, translate, previous, untimed = tokenizer.convert_tokens_to_ids(special)
    end = tokenizer.eos_token_id
    ends = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=32, **ends,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        max_length=12, is_multilingual=True, lang_to_id={"<|en|>": english}, no_timestamps_token_id=untimed,
        task_to_id={"transcribe": transcribe_id, "translate": translate}, prev_sot_token_id=previous, **ends,
    )  # fmt: skip
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)


def test_wavlm_runs_a_checkpoint_by_its_folder(checkpoints: Mapping[str, Path]) -> None:
    metric = speaker_wavlm(weights=str(checkpoints["wavlm"]))
    x = sounds("wavlm", 2, 0.6)
    out = metric(sample(x, torch.cat([x[:1], x[:1]])))["speaker_wavlm_base_plus_sv"]
    assert out[0].item() == pytest.approx(1.0)
    assert out[1] < out[0]
    assert math.isnan(metric(sample(x[..., :4000], x[..., :4000]))["speaker_wavlm_base_plus_sv"][0].item())
    other = speaker_wavlm(model="microsoft/wavlm-base-sv", weights=str(checkpoints["wavlm"]))
    assert [column.name for column in other.spec.columns] == ["speaker_wavlm_base_sv"]
    assert other.spec.name == "speaker_wavlm_base_sv" != metric.spec.name  # readings of two networks must not mix
    assert other.spec.protocol["weights"] == metric.spec.protocol["weights"] != "absent"


def test_a_published_bin_file_with_the_old_names_of_weight_norm_loads(
    checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    state = load_file(checkpoints["wavlm"] / "model.safetensors")
    old = {key.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"): value for key, value in state.items()}  # fmt: skip
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "pytorch_model.bin")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((checkpoints["wavlm"] / name).read_bytes())
    wave = sounds("bin", 1, 0.6)[0, 0]
    new, published = (
        speaker_wavlm(weights=str(folder)).voice.embed(wave) for folder in (checkpoints["wavlm"], tmp_path)
    )
    assert new is not None
    assert published is not None
    torch.testing.assert_close(new, published)
    del old["classifier.weight"]
    torch.save(
        {key: value for key, value in old.items() if "feature_extractor" not in key}, tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(WeightsRefused, match="lacks tensors"):
        speaker_wavlm(weights=str(tmp_path)).voice.embed(wave)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Path("x"), protocol=2))
    with pytest.raises(WeightsRefused, match="never runs the code"):
        speaker_wavlm(weights=str(tmp_path)).voice.embed(wave)


def test_recognisers_of_transformers_run_by_their_folders(checkpoints: Mapping[str, Path]) -> None:
    x = sounds("asr", 1, 0.7)
    for metric in (
        wer_hubert(weights=str(checkpoints["hubert"])),
        wer_whisper(weights=str(checkpoints["whisper"]), beams=2),
    ):
        batch = replace(sample(x, x), annotations=({"text": "Mister Brown's colour"},))
        out = metric(batch)
        slug = metric.listener.slug
        assert out[f"dwer_{slug}_errors"].item() == 0  # the same sound
        truth = {"wer_hubert": "mister brown's colour", "wer_whisper": "mister brown is color"}[metric.listener.name]
        assert metric.details(batch)[0][0]["truth"] == truth
        assert out[f"wer_{slug}_words"].item() == len(truth.split())
        assert torch.equal(out[f"wer_{slug}_errors"], out[f"floor_wer_{slug}_errors"])
        assert out[f"wer_{slug}_errors"].item() >= 2


def test_whisper_goes_through_long_clips_and_its_own_normaliser(checkpoints: Mapping[str, Path]) -> None:
    listener = wer_whisper(weights=str(checkpoints["whisper"]), beams=1).listener
    assert isinstance(listener.hear(torch.zeros(31 * RATE)), str)
    assert listener.normalise("  Twenty-one COLOUR, it's ") == "21 color it is"
    assert wer_whisper(language="de", weights=str(checkpoints["whisper"])).listener.normalise("Größe!") == "größe"


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path, checkpoints: Mapping[str, Path]) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        speaker_wavlm(weights=str(tmp_path / "nowhere")).spec.protocol  # noqa: B018
    with pytest.raises(UsageError, match="holds no"):
        speaker_wavlm(weights=str(tmp_path)).spec.protocol  # noqa: B018
    with pytest.raises(UsageError, match="id such as"):
        speaker_wavlm(model="wavlm")
    with pytest.raises(UsageError, match="beams"):
        wer_whisper(beams=0)


def test_clap_hears_ten_seconds_at_a_time(checkpoints: Mapping[str, Path]) -> None:
    embedding = fad.fad_clap(weights=str(checkpoints["clap"])).embedding
    wave = sounds("clap", 1, 11.0, 48_000)[0, 0]
    found = embedding.embed(wave)
    assert found.shape == (2, 16)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert torch.equal(embedding.embed(wave[:480_000]), found[:1])
    whole, rest = _embeddings.clap_windows(wave, 480_000)
    assert torch.equal(whole, wave[:480_000])
    assert torch.equal(rest, wave[480_000:].repeat(10))


# -------------------------------------------------------------------------------------------------------- error rates


@dataclass(frozen=True)
class Script:
    """A recogniser that reads the number a clip consists of and says the line of that number."""

    lines: Sequence[str]
    heard: list[int] = field(default_factory=list)

    name = "wer_script"
    slug = "script"
    about = "a script"
    reference = "none"
    extra = "audio"

    def settings(self) -> Mapping[str, Any]:
        return {}

    def fetch(self, *, offline: bool) -> None:
        pass

    def hear(self, wave: Tensor) -> str:
        self.heard.append(round(float(wave[0]) * 100))
        return self.lines[self.heard[-1]]

    def normalise(self, text: str) -> str:
        return plain(text)


def lines(*numbers: int) -> Tensor:
    return torch.tensor(numbers)[:, None, None].expand(-1, 1, 50) / 100


def test_errors_are_counted_against_the_transcript_and_against_the_reference() -> None:
    script = Script(("The cat sat.", "the cat sat down", "a bat sat", ""))
    metric = ErrorRates(script)
    assert isinstance(metric, Detailed)
    batch = sample(lines(0, 1, 0), lines(2, 1, 3))
    batch = replace(batch, annotations=({"text": "The Cat -- SAT!"}, {}, {"text": "the cat"}))
    out = metric(batch)
    assert out["wer_script_errors"].tolist()[::2] == [2, 2]  # two words misheard; both words deleted
    assert out["wer_script_words"].tolist()[::2] == [3, 2]
    assert out["dwer_script_errors"].tolist() == [2, 0, 3]
    assert out["dwer_script_words"].tolist() == [3, 4, 3]
    assert out["floor_wer_script_errors"].tolist()[::2] == [0, 1]
    assert out["cer_script_errors"].tolist()[0] == 4  # the -> a: three, cat -> bat: one
    assert out["cer_script_chars"].tolist()[0] == len("the cat sat")
    for name in ("wer_script_errors", "wer_script_words", "floor_wer_script_errors", "cer_script_chars"):
        assert math.isnan(out[name][1].item())
        assert "transcript" in metric.undefined[name]
    assert metric.details(batch)[1] == [{"truth": None, "original": "the cat sat down", "heard": "the cat sat down"}]
    assert script.heard == [0, 1, 0, 2, 1, 3]  # each clip once, however often it is asked for


def test_what_is_said_where_nothing_was_counts_as_inserted() -> None:
    out = ErrorRates(Script(("", "well well")))(sample(lines(0), lines(1)))
    assert out["dwer_script_errors"].item() == 2
    assert out["dwer_script_words"].item() == 0
    assert out["dcer_script_errors"].item() == 9


def test_rates_are_of_the_corpus() -> None:
    metric = ErrorRates(Script(("one two three four", "one", "one two", "two")))
    batch = sample(lines(0, 1), lines(2, 3))
    out = metric(batch)
    rows = [
        Row(key, key, values={n: None if math.isnan(v) else v for n, v in ((n, c[k].item()) for n, c in out.items())},
            undefined={n: metric.undefined[n] for n, c in out.items() if math.isnan(c[k].item())})
        for k, key in enumerate(batch.keys)
    ]  # fmt: skip
    board = cells(TokenizerSpec("t", "audio", "none"), {"wer_script": metric}, rows, {}.__getitem__)
    assert board["dwer_script"]["value"] == pytest.approx(3 / 5)  # not the mean of 1/2 and 1
    assert board["dwer_script"]["n"] == 5
    assert board["dwer_script"]["ci95"][0] <= 0.6 <= board["dwer_script"]["ci95"][1]
    assert board["wer_script"]["value"] is None


def test_plain_text() -> None:
    assert plain("“It’s GOOD,” she said -- twice.") == "it's good she said twice"
    assert plain("Café_noir 'quoted' rock'n'roll ''") == "cafe noir quoted rock'n'roll"
    assert plain("...") == ""


def test_pocketsphinx_hears_a_clip_alike_whatever_came_before() -> None:
    pytest.importorskip("pocketsphinx")
    x = sounds("sphinx", 2, 0.8)
    metric = wer_pocketsphinx()
    both = [metric.listener.hear(row[0]) for row in x]
    assert [metric.listener.hear(row[0]) for row in x.flip(0)] == both[::-1]
    out = metric(sample(x, x))
    assert out["dwer_pocketsphinx_errors"].tolist() == [0, 0]
    assert metric.listener.hear(torch.zeros(10)) == ""


# ---------------------------------------------------------------------------------------------------------------- FAD


class Halved:
    """A tokenizer that halves the level and loses the end of each clip."""

    spec = TokenizerSpec("halved", "audio", "none", (-1.0, 1.0), sample_rate=RATE, channels=1)

    def encode(self, x: Tensor) -> Code:
        return Code(latents=x)

    def decode(self, code: Code) -> Tensor:
        assert code.latents is not None
        x = code.latents.clone()
        x[..., x.shape[-1] // 2 :] *= 0.05
        return x


def test_fad_is_zero_for_the_references_and_exact_whatever_the_batch() -> None:
    metric = fad.fad_crepe()
    x = sounds("fad", 4, 0.9)
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    batch = sample(x, y)
    whole = metric.update_reference(metric.update(metric.init(), batch), batch)
    parts = metric.init()
    for k in (2, 0, 3, 1):
        row = take_row(batch, k)
        parts = metric.update_reference(metric.update(parts, row), row)
    assert whole.keys() == parts.keys()
    found = metric.compute(whole)
    assert found == metric.compute(parts)
    assert found["fad_crepe_vectors"] == 4 * 14
    assert found["fad_crepe"] > 0.01  # type: ignore[operator]
    same = sample(x, x)
    zero = metric.compute(metric.update_reference(metric.update(metric.init(), same), same))["fad_crepe"]
    assert zero == pytest.approx(0.0, abs=1e-4)
    assert metric.compute(metric.init()) == {"fad_crepe": None, "fad_crepe_vectors": 0.0}
    assert "two" in metric.undefined["fad_crepe"]


def test_fad_of_a_run_reuses_the_references() -> None:
    items = [Item(f"r{k}", f"r{k}", row.numpy(), sample_rate=RATE) for k, row in enumerate(sounds("run", 3, 0.7))]
    protocol = EvalProtocol("audio", AudioPrepare(RATE), rounding="none")
    metrics = {"fad_crepe": fad.fad_crepe()}
    first = evaluate(Halved(), items, metrics, protocol, engine=Engine(), batch_size=2)
    again = evaluate(Halved(), items, metrics, protocol, engine=Engine(), batch_size=3, references=first.references)
    values = [metrics["fad_crepe"].compute(result.states["fad_crepe"])["fad_crepe"] for result in (first, again)]
    assert values[0] == values[1]
    assert values[0] > 0  # type: ignore[operator]


def test_fad_agrees_with_numpy_and_scipy() -> None:
    from scipy.linalg import sqrtm

    metric, x = fad.fad_crepe(), sounds("scipy", 4, 6.0)
    y = x.flip(-1) * 0.5 + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    batch = sample(x, y)
    state = metric.update_reference(metric.update(metric.init(), batch), batch)
    a, b = (torch.cat([metric.embedding.embed(row[0]) for row in side]).double().numpy() for side in (x, y))
    cross = sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * cross
    )
    assert metric.compute(state)["fad_crepe"] == pytest.approx(expected, rel=1e-3)


def test_embeddings_take_clips_shorter_than_their_window() -> None:
    short = sounds("short", 1, 0.01)[0, 0]
    assert _embeddings.Crepe().embed(short).shape == (1, 256)
    assert _embeddings.vggish_examples(short).shape == (1, 1, 96, 64)
    assert _embeddings.crepe_frames(torch.zeros(2048)).abs().max() == 0
    with pytest.raises(UsageError, match="tiny or full"):
        fad.fad_crepe(size="huge")
    assert fad.fad_crepe(size="full").spec.name == "fad_crepe_full"


def test_functions_are_what_the_registry_builds() -> None:
    built = build_metric("wer_whisper?model=openai/whisper-small&beams=1")
    assert isinstance(built, transcribe.ErrorRates)
    assert [column.name for column in built.spec.columns if column.level][:1] == ["wer_whisper_small"]
    names = [
        build_metric(name).spec.name for name in ("wer_whisper", "wer_hubert?model=facebook/hubert-xlarge-ls960-ft")
    ]
    assert [built.spec.name, *names] == ["wer_whisper_small", "wer_whisper", "wer_hubert_xlarge_ls960_ft"]


# ------------------------------------------------------------------------------------------------ the built-in speech


@pytest.mark.slow
def test_every_offline_metric_of_speech_hears_what_a_listener_hears() -> None:
    """Speech, and the same under noise as loud as itself: scores fall, errors rise."""
    from voice import recording

    x = torch.from_numpy(np.asarray(recording("austen-0880"), np.float32))[None, None]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) * x.square().mean().sqrt()
    values: list[dict[str, float]] = []
    for y in (x, (x + noise).clamp(-1, 1)):
        batch = replace(sample(x, y), annotations=({"text": "he was not an ill disposed young man"},))
        row = dict(Dnsmos().row(x[0].numpy(), y[0].numpy(), RATE))
        for metric in (DistillMos(), speaker_resemblyzer(), wer_pocketsphinx()):
            row |= {name: column.item() for name, column in metric(batch).items()}
        values.append(row)
    clean, noisy = values
    for name in ("distillmos", "speaker_resemblyzer", "dnsmos_ovrl", "dnsmos_bak", "dnsmos_p808"):
        assert clean[name] > noisy[name], name
    assert clean["wer_pocketsphinx_errors"] < noisy["wer_pocketsphinx_errors"]
    assert clean["wer_pocketsphinx_errors"] / clean["wer_pocketsphinx_words"] < 0.6
    assert clean["dwer_pocketsphinx_errors"] == 0 < noisy["dwer_pocketsphinx_errors"]
    assert clean["wer_pocketsphinx_errors"] == noisy["floor_wer_pocketsphinx_errors"]
