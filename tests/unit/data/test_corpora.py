"""Sound corpora in their published layout come with text, speaker, titles and labels, and say what is missing."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tokbench import registry
from tokbench.data import Item, manifest, open_source, stream
from tokbench.errors import UsageError
from tokbench.registry import build_metric
from tokbench.spec import AudioPrepare
from tokbench.suite import load_suites


def write(path: Path, seconds: float = 0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.linspace(-0.5, 0.5, int(seconds * 16_000), dtype=np.float32), 16_000)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def test_librispeech_gives_text_speaker_chapter_and_sex(tmp_path: Path) -> None:
    root = tmp_path / "LibriSpeech" / "test-clean"
    for name in ("1089/134686/1089-134686-0000", "1089/134686/1089-134686-0001", "908/31957/908-31957-0007"):
        write(root / f"{name}.flac")
    text(root / "1089/134686/1089-134686.trans.txt", "1089-134686-0000 HE HOPED\n1089-134686-0001 STUFF IT INTO YOU\n")
    text(root / "908/31957/908-31957.trans.txt", "908-31957-0007 YES\n")
    text(
        root.parent / "SPEAKERS.TXT",
        ";ID | SEX\n1089 | M | test-clean | 8.0 | Peter\n908  | F | test-clean | 8.1 | Ann\n",
    )
    write(root / "notes/hello.flac")
    source = open_source(f"librispeech:{root}", "audio")
    keys = source.keys()
    assert keys == (
        "1089/134686/1089-134686-0000.flac", "1089/134686/1089-134686-0001.flac", "908/31957/908-31957-0007.flac",
    )  # fmt: skip
    assert source.annotations(keys[1]) == {
        "speaker": "1089", "chapter": "134686", "sex": "M", "text": "STUFF IT INTO YOU",
    }  # fmt: skip
    assert source.annotations(keys[2])["sex"] == "F"
    assert source.hint == ""
    assert source.ignored == 1  # the file that is no utterance
    again = pickle.loads(pickle.dumps(source))
    assert again.keys() == keys
    assert again.annotations(keys[0]) == source.annotations(keys[0])
    rows = list(stream(source, keys, AudioPrepare(sample_rate=16_000), 0))
    assert [row.annotations["text"] for row in rows if isinstance(row, Item)] == [
        "HE HOPED",
        "STUFF IT INTO YOU",
        "YES",
    ]
    assert [key for key, _ in manifest(source, tmp_path / "cache").entries] == list(keys)


def test_a_recording_without_its_line_stays_and_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "1/2/1-2-0000.flac")
    write(tmp_path / "1/2/1-2-0001.flac")
    text(tmp_path / "1/2/1-2.trans.txt", "1-2-0001 WORDS\n")
    source = open_source(f"librispeech:{tmp_path}", "audio")
    assert len(source.keys()) == 2
    assert "text" not in source.annotations("1/2/1-2-0000.flac")
    assert source.hint == "1 of 2 recordings have no line in a .trans.txt file"


def test_libritts_gives_both_spellings(tmp_path: Path) -> None:
    name = "test-clean/1089/134686/1089_134686_000002_000001"
    write(tmp_path / f"{name}.wav")
    text(tmp_path / f"{name}.normalized.txt", "Mister Dedalus, two of them.\n")
    text(tmp_path / f"{name}.original.txt", "Mr. Dedalus, 2 of them.")
    text(tmp_path / "speakers.tsv", "READER\tGENDER\tSUBSET\tNAME\n1089\tM\ttest-clean\tPeter\n")
    source = open_source(f"libritts:{tmp_path}", "audio")
    assert source.annotations(f"{name}.wav") == {
        "speaker": "1089", "chapter": "134686", "sex": "M",
        "text": "Mister Dedalus, two of them.", "original": "Mr. Dedalus, 2 of them.",
    }  # fmt: skip


def test_musdb_takes_the_mixtures_alone(tmp_path: Path) -> None:
    for stem in ("mixture", "drums", "bass", "other", "vocals"):
        write(tmp_path / "AM Contra - Heart Peripheral" / f"{stem}.wav")
    (tmp_path / "Old - Song.stem.mp4").write_bytes(b"x")
    source = open_source(f"musdb:{tmp_path}", "audio")
    assert source.keys() == ("AM Contra - Heart Peripheral/mixture.wav", "Old - Song.stem.mp4")
    assert source.annotations(source.keys()[0]) == {"artist": "AM Contra", "title": "Heart Peripheral"}
    assert source.annotations(source.keys()[1]) == {"artist": "Old", "title": "Song"}
    assert source.ignored == 4


def test_audioset_joins_files_and_segments_however_they_were_named(tmp_path: Path) -> None:
    head = "# Segments csv created in 2017\n# num_ytids=4\n# YTID, start_seconds, end_seconds, positive_labels\n"
    rows = "".join(
        f'{name}, 30.000, 40.000, "/m/a,/m/b"\n'
        for name in ("--4gqARaEJE", "-0RWZT-miFs", "_abcdefghij", "gone_______")
    )
    text(tmp_path / "eval_segments.csv", head + rows)
    text(tmp_path / "class_labels_indices.csv", 'index,mid,display_name\n0,/m/a,"Speech, male"\n')
    for name in ("--4gqARaEJE.wav", "Y-0RWZT-miFs.wav", "_abcdefghij_30_40.flac", "unrelated.wav"):
        write(tmp_path / "eval_segments" / name)
    source = open_source(f"audioset:{tmp_path / 'eval_segments'}", "audio")
    assert source.keys() == ("--4gqARaEJE.wav", "Y-0RWZT-miFs.wav", "_abcdefghij_30_40.flac")
    assert source.annotations("Y-0RWZT-miFs.wav") == {
        "video": "-0RWZT-miFs", "start": 30.0, "end": 40.0, "labels": ["/m/a", "/m/b"], "names": ["Speech, male", "/m/b"],
    }  # fmt: skip
    assert source.hint == "1 of the 4 segments of eval_segments.csv have no file here"
    assert source.ignored == 1
    text(tmp_path / "balanced_train_segments.csv", head)
    assert open_source(f"audioset:{tmp_path / 'eval_segments'}", "audio").keys() == source.keys()


def test_a_folder_of_something_else_says_what_was_expected(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    with pytest.raises(UsageError, match=r"no file named like 1089/134686/1089-134686-0000\.flac"):
        open_source(f"librispeech:{tmp_path}", "audio").keys()
    with pytest.raises(UsageError, match="needs one AudioSet segments file"):
        open_source(f"audioset:{tmp_path}", "audio").keys()
    with pytest.raises(UsageError, match="is not there"):
        open_source(f"musdb:{tmp_path / 'absent'}", "audio")
    with pytest.raises(UsageError, match="holds sound, not image"):
        open_source(f"libritts:{tmp_path}", "image")


@pytest.mark.parametrize(
    ("name", "scheme", "count", "rate"),
    [
        ("librispeech-test-clean-16k", "librispeech", 2620, 16_000),
        ("libritts-test-clean-24k", "libritts", 4837, 24_000),
        ("audioset-eval", "audioset", 20_371, 24_000),
        ("musdb18-test", "musdb", 50, 44_100),
    ],
)
def test_suites_of_corpora_name_their_layout_count_and_rows_that_exist(
    name: str, scheme: str, count: int, rate: int
) -> None:
    (suite,) = load_suites([name])
    assert suite.dataset.partition(":")[0] == scheme
    assert suite.expected_samples == count
    assert isinstance(suite.prepare, AudioPrepare)
    assert suite.prepare.sample_rate == rate
    cards = registry.expand(suite.tokenizers)
    assert [card.spec.name for card in cards] == list(suite.tokenizers)
    assert {(card.status, card.spec.modality, card.spec.encode_only) for card in cards} == {
        ("available", "audio", False)
    }
    assert {build_metric(metric).spec.name for metric in suite.metrics} >= {"rate", "codebook"}
    with pytest.raises(UsageError, match="is not there"):
        open_source(suite.dataset, "audio")
