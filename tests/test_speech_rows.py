"""Speech tokenizer, DiT and vocoder on rows of real speech: what they learn, what comes of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_talk
import torch

import thinktalk
from thinktalk.media.encode import write_wav
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.train import speech
from thinktalk.train.checkpoint import best_weights
from thinktalk.train.codes import encode_speech
from thinktalk.train.journal import curve
from thinktalk.train.losses import voice_mel
from thinktalk.train.recordings import streams_of
from thinktalk.train.shards import open_source
from thinktalk.train.speech import TokenizerTask, held_out_starts
from thinktalk.train.spelling import Reader, spelled
from thinktalk.train.streams import Stream
from thinktalk.train.tuning import train_on
from thinktalk.train.voice import ENCODER_FILE, load_speech_encoder
from thinktalk.weights import LoadedModel, load

SENTENCES = ("the red bird is happy.", "two, three, four, five.", "say: a big dog.")
QUICK = {"warmup_steps": 3, "ema": 0.0, "batch_size": 4, "bfloat16": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return small_talk.build(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_talk.speak_rows(tmp_path_factory.mktemp("rows"), SENTENCES, ("Chelsie", "Ethan"))


def falls(folder: Path, figure: str) -> bool:
    values = [row[figure] for row in curve(folder) if figure in row]
    assert np.isfinite(values).all()
    return values[-1] < values[0]


def test_streams_are_the_recordings_of_every_speaker(rows: Path, tmp_path: Path) -> None:
    source = open_source(rows)
    streams = streams_of([source], tmp_path)
    assert [stream.voice for stream in streams] == ["Chelsie", "Ethan"]
    for stream in streams:
        assert [row["text"] for row in stream.rows] == list(SENTENCES)
        assert len(stream.wave) == 240 * len(stream.mel) == 240 * sum(
            row["frames"] for row in stream.rows
        )  # fmt: skip
        row = stream.rows[1]
        wave = stream.wave[row["frame"] * 240 : (row["frame"] + row["frames"]) * 240] / 32768
        mel = voice_mel(torch.from_numpy(wave.astype(np.float32))[None])[0].numpy()
        there = stream.mel[row["frame"] + 5 : row["frame"] + row["frames"] - 5]
        assert np.abs(mel[5:-5] - there).mean() < 0.05
    made = next(tmp_path.glob("recordings-*/index.jsonl")).stat().st_mtime_ns
    again = streams_of([source], tmp_path)
    assert next(tmp_path.glob("recordings-*/index.jsonl")).stat().st_mtime_ns == made
    assert np.array_equal(again[1].wave, streams[1].wave)


def test_rows_without_enough_speech_are_told(rows: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    coded = small_talk.coded("hi", "hey", [1], "Ethan")
    for name, some, reason in (
        ("codes", [coded], "Codes alone are not enough"),
        ("short", lines[:1], "s of Chelsie; a speaker needs more than 4 s"),
        (
            "missing",
            [lines[0] | {"speech": "none.wav"}],
            "(?s)1 of 1 rows.*none.wav does not exist",
        ),
    ):
        path = small_talk.write_rows(rows.parent / f"{name}.jsonl", some)
        with pytest.raises(ValueError, match=reason):
            streams_of([open_source(path)], tmp_path / name)
    write_wav(rows.parent / "tiny.wav", np.zeros(300, np.float32), 24_000)
    path = small_talk.write_rows(
        rows.parent / "t.jsonl", [*lines, lines[0] | {"speech": "tiny.wav"}]
    )
    with pytest.raises(ValueError, match="shorter than one codec id"):
        streams_of([open_source(path)], tmp_path / "t")
    assert len(streams_of([open_source(path)], tmp_path / "t", max_bad_share=0.2)) == 2


def test_the_tokenizer_learns_mel_and_letters_and_becomes_the_checkpoints_encoder(
    base: LoadedModel, rows: Path, tmp_path: Path
) -> None:
    changes = QUICK | {"steps": 40, "learning_rate": 3e-3, "batch_size": 3}
    assert train_on("tokenizer", model=base.folder, data=[rows], out=tmp_path, changes=changes)
    assert falls(tmp_path / "tokenizer", "mel") and falls(tmp_path / "tokenizer", "letters")
    encoder = load_speech_encoder(tmp_path / "model")
    weights = best_weights(tmp_path / "tokenizer")
    trained = SpeechTokenizer(encoder.config)
    trained.load_state_dict(
        {n.removeprefix("tokenizer."): w for n, w in weights.items() if n.startswith("tokenizer.")}
    )
    wave = str(rows.parent / "Ethan_0.wav")
    same = encode_speech(wave, encoder) == encode_speech(wave, trained.eval())
    assert same.mean() > 0.9  # kept in half precision
    before = encode_speech(wave, load_speech_encoder(base.folder))
    assert (encode_speech(wave, encoder) != before).any()
    assert torch.equal(load(tmp_path / "model").omni.talker.codec_head.weight,
                       base.omni.talker.codec_head.weight)  # fmt: skip


def test_letters_are_read_from_codes(rows: Path, tmp_path: Path) -> None:
    """The reader alone learns one clip by heart, and CTC reads it off again."""
    torch.manual_seed(0)
    streams = streams_of([open_source(rows)], tmp_path)
    task = TokenizerTask(SpeechTokenizer(small_talk.TOKENIZER), streams, reads=True)
    assert isinstance(task.reader, Reader)
    batch = task._whole([(0, streams[0].rows[0])])
    quantised = task.tokenizer.quantise(task.tokenizer.latents(batch["mel"])).detach()
    optimizer = torch.optim.AdamW(task.reader.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = task.reader.loss(quantised, batch)
        loss.backward()
        optimizer.step()
    best = task.reader(quantised)[0].argmax(-1).unique_consecutive().tolist()
    assert bytes(c - 1 for c in best if c) == b"the red bird is happy"
    assert spelled("Ä, b!") == [c + 1 for c in "ä b".encode()]


def test_the_dit_turns_codes_back_into_their_mel(
    base: LoadedModel, rows: Path, tmp_path: Path
) -> None:
    changes = QUICK | {"steps": 170, "learning_rate": 4e-3, "fresh": "true"}
    assert train_on("dit", model=base.folder, data=[rows], out=tmp_path, changes=changes)
    assert falls(tmp_path / "dit", "velocity")
    last = [row for row in curve(tmp_path / "dit") if "test_mel" in row][-1]
    stream = streams_of([open_source(rows)], tmp_path / "kept")[0]
    mel = stream.mel.astype(np.float32)
    plain = np.abs(mel - mel.mean(0)).mean()  # who says the mean of all frames
    assert last["test_mel"] < 0.9 * plain
    model = load(tmp_path / "model")
    before = base.omni.state_dict()
    changed = {
        name.rpartition("code2wav_dit_model.")[0]
        for name, value in model.omni.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"token2wav."}
    answer = thinktalk.generate(model, ["hi"], max_text_tokens=3, max_codec_ids=12)
    assert len(answer.audio) == 480 * len(answer.codec_ids)


def test_a_trained_dit_goes_on_where_it_was(base: LoadedModel, rows: Path, tmp_path: Path) -> None:
    """Without fresh nothing is begun anew: a rate of zero leaves the checkpoint as it was."""
    changes = QUICK | {"steps": 1, "learning_rate": 0.0}
    assert train_on("dit", model=base.folder, data=[rows], out=tmp_path, changes=changes)
    after = load(tmp_path / "model").omni.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in base.omni.state_dict().items())


def test_unknown_speakers_of_foreign_checkpoints_are_told(
    base: LoadedModel, rows: Path, tmp_path: Path
) -> None:
    from thinktalk.train.speech_courses import known_conditions

    stream = replace(streams_of([open_source(rows)], tmp_path)[0], voice="Zoe")
    assert known_conditions([stream], base).shape == (1, 160)
    other = LoadedModel(base.omni, base.voices, base.folder)
    object.__setattr__(other, "voices", {})
    assert torch.equal(known_conditions([stream], other)[0], speech.conditions([stream])[0])


def test_the_vocoder_comes_closer_to_the_wave(
    base: LoadedModel, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges = speech.Judges
    monkeypatch.setattr(
        speech, "Judges", lambda: judges(width=4, periods=(2, 5), resolutions=((512, 128),))
    )
    monkeypatch.setattr(speech.VocoderTask, "FRAMES", 20)
    changes = QUICK | {"steps": 44, "learning_rate": 3e-3, "fresh": "true", "batch_size": 2}
    assert train_on("vocoder", model=base.folder, data=[rows], out=tmp_path, changes=changes)
    for figure in ("mel", "judging"):
        assert falls(tmp_path / "vocoder", figure), figure
    before = base.omni.token2wav.code2wav_bigvgan_model
    after = load(tmp_path / "model").omni.token2wav.code2wav_bigvgan_model
    stream = streams_of([open_source(rows)], tmp_path / "kept")[0]
    mel = torch.from_numpy(stream.mel[100:160].astype(np.float32))[None]
    errors = []
    for vocoder in (before, after):
        with torch.no_grad():
            made = voice_mel(vocoder(mel.mT))
        errors.append(float((made - mel).abs().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_crops_for_tests_are_few_however_many_speakers_there_are() -> None:
    mel = np.zeros((600, 80), np.float16)
    streams = [Stream(str(n), np.zeros(1, np.int16), mel, []) for n in range(100)]
    starts = held_out_starts(streams, frames=100, grid=1)
    assert 8 <= len(starts) <= 16 and len({number for number, _ in starts}) == len(starts)
    assert len(held_out_starts(streams[:2], frames=100, grid=1)) == 16


def test_a_checkpoint_without_an_encoder_needs_a_tokenizer_first(
    base: LoadedModel, rows: Path, tmp_path: Path
) -> None:
    model = LoadedModel(base.omni, base.voices, base.folder)
    thinktalk.weights.save(model, tmp_path / "bare")  # pyright: ignore[reportAttributeAccessIssue]
    assert not (tmp_path / "bare" / ENCODER_FILE).exists()
    with pytest.raises(ValueError, match="no encoder of its codec ids is known"):
        train_on("dit", model=tmp_path / "bare", data=[rows], out=tmp_path / "a", changes=QUICK)
    wide = QUICK | {"levels": "8,8,8,8", "steps": 1}
    with pytest.raises(ValueError, match=r"make 4096 codes, but the DiT of .* knows 1000"):
        train_on(
            "tokenizer", model=tmp_path / "bare", data=[rows], out=tmp_path / "b", changes=wide
        )


def test_options_without_a_meaning_are_refused(
    base: LoadedModel, rows: Path, tmp_path: Path
) -> None:
    for number, (data, held) in enumerate((([(rows, 2.0)], []), ([rows], [rows]))):
        with pytest.raises(ValueError, match="leave out --held and the weights"):
            train_on("vocoder", model=base.folder, data=data, held=held, out=tmp_path / str(number))
