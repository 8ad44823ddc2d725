"""Playroom data on disk: formats, determinism, resuming."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest

from thinktalk.playroom import dataset, speech, talk


def wav(path: Path) -> tuple[np.ndarray, int]:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()


def test_training_set_has_the_schema_and_does_not_depend_on_workers(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        dataset.make(tmp_path / name, seed=5, num_cases=12, workers=workers)
    lines = (tmp_path / "one" / "data.jsonl").read_text("utf-8").splitlines()
    assert lines == (tmp_path / "two" / "data.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 12 and any(row["audios"] for row in rows)
    for row in rows:
        tags = sum(message["content"].count("<audio>") for message in row["messages"])
        assert tags == len(row["audios"])
        assert row["messages"][-1]["role"] == "assistant"
        assert row["speaker"] in speech.REPLY_VOICES
        for path in row["audios"]:
            heard, rate = wav(tmp_path / "one" / path)
            assert rate == 16_000 and np.array_equal(heard, wav(tmp_path / "two" / path)[0])
        if row["speech"]:
            said, rate = wav(tmp_path / "one" / row["speech"])
            assert rate == 24_000 and len(said) % speech.CODEC_ID_SAMPLES == 0


def test_interrupted_training_set_is_completed_without_redoing(tmp_path: Path) -> None:
    dataset.make(tmp_path, seed=5, num_cases=4, workers=1)
    before = (tmp_path / "data.jsonl").read_text("utf-8")
    (tmp_path / "rows" / "000002.json").unlink()
    (tmp_path / "data.jsonl").unlink()
    kept = tmp_path / "rows" / "000001.json"
    stamp = kept.stat().st_mtime_ns
    dataset.make(tmp_path, seed=5, num_cases=4, workers=1)
    assert (tmp_path / "data.jsonl").read_text("utf-8") == before
    assert kept.stat().st_mtime_ns == stamp


def test_speech_corpus_is_packed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "PART_ITEMS", 2)
    items = [
        ("the red bird.", "Chelsie", 1.0),
        ("hello, ben!", "Ethan", 1.4),
        ("up.", "Ethan", 0.8),
    ]
    dataset.make_speech_corpus(tmp_path, items, workers=2)
    corpus = dataset.open_corpus(tmp_path)
    assert [(r["text"], r["voice"], r["stretch"]) for r in corpus.rows] == items
    position = 0
    for row, (text, voice, stretch) in zip(corpus.rows, items, strict=True):
        assert row["start"] == position
        position += row["samples"]
        said = speech.utter(text, voice=voice, stretch=stretch)
        assert np.abs(corpus.clip(row) - said.samples).max() < 1e-4
        assert np.abs(np.array(row["words"]) - np.array(said.words)).max() < 1e-4
    assert position == len(corpus.waves) and corpus.waves.dtype == np.int16
    assert not (tmp_path / "parts").exists()


def test_unfinished_corpus_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "PART_ITEMS", 1)
    items = [("the red bird.", "Chelsie", 1.0), ("hello, ben!", "Ethan", 1.0)]

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(dataset, "_pack", fail)
        with pytest.raises(KeyboardInterrupt):
            dataset.make_speech_corpus(tmp_path, items, workers=1)
    with pytest.raises(ValueError, match="no finished corpus"):
        dataset.open_corpus(tmp_path)
    (tmp_path / "parts" / "00001.jsonl").unlink()
    spoken: list[object] = []
    original = dataset._reply_clip
    monkeypatch.setattr(
        dataset, "_reply_clip", lambda item: (spoken.append(item), original(item))[1]
    )
    dataset.make_speech_corpus(tmp_path, items, workers=1)
    assert spoken == items[1:] and len(dataset.open_corpus(tmp_path).rows) == 2


def test_question_corpus_rows_are_complete(tmp_path: Path) -> None:
    dataset.make_question_corpus(tmp_path, seed=7, num_cases=24, split="test", voices="unseen")
    corpus = dataset.open_corpus(tmp_path)
    position = 0
    for row in corpus.rows:
        case = row["case"]
        contents = [m["content"] for m in row["messages"]]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        heard = [part["audio"] for part in parts if part["type"] == "audio"]
        assert heard == list(range(len(row["clips"])))
        for clip in row["clips"]:
            assert clip["start"] == position and clip["voice"] in speech.UNSEEN_VOICES
            position += clip["samples"]
        assert row["answer"] == case["answer"]
        assert case["key"] is None or talk.is_held_out(case["key"])
        if case["task"] == "transcribe":
            assert [clip["text"] for clip in row["clips"]] == [case["heard"]]
        if case["gender"]:
            assert {clip["gender"] for clip in row["clips"]} == {case["gender"]}
    assert position == len(corpus.waves)


def test_heard_sentence_stands_before_the_question() -> None:
    case = talk.write_down("dictation", "the red bird.", "what did i say?")
    rows, clips, messages = dataset.hear(case, rng=np.random.default_rng(0), spoken=True)
    assert [row["text"] for row in rows] == ["the red bird.", "what did i say?"]
    assert len({row["voice"] for row in rows}) == 1 and clips[0].dtype == np.int16
    assert [part["type"] for part in messages[-1]["content"]] == ["audio", "audio"]
    _, _, typed = dataset.hear(case, rng=np.random.default_rng(0), spoken=False)
    assert typed[-1]["content"][1] == {"type": "text", "text": "what did i say?"}


def test_reply_sentences_are_distinct_train_replies() -> None:
    items = dataset.reply_sentences(seed=3, count=800)
    assert items == dataset.reply_sentences(seed=3, count=800) and len(set(items)) == 800
    assert {voice for _, voice, _ in items} == set(speech.REPLY_VOICES)
    assert {stretch for _, _, stretch in items} == {1.0, 1.4, 0.8}
    assert all(text != talk.TOOL_CALL for text, _, _ in items)
    counted = {case.answer for case in talk.cases("test", "count")}
    assert not counted & {text for text, _, _ in items}
