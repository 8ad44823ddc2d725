"""Playroom data on disk: formats, determinism, resuming."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from thinktalk.media.decode import load_audio, load_image
from thinktalk.media.encode import encode
from thinktalk.playroom import cases, dataset, speech, talk
from thinktalk.train import rows


def rows_of(folder: Path) -> list[dict]:
    lines = (folder / "data.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_training_set_does_not_depend_on_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD_CASES", 3)
    for name, workers in (("one", 1), ("two", 2)):
        dataset.make(tmp_path / name, seed=5, num_cases=8, workers=workers)
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert one.keys() == two.keys() and all(one[name] == two[name] for name in one)
    assert {name.split("/")[1] for name in one if "/" in name} == {"00000", "00001", "00002"}


def test_training_set_is_what_the_cases_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SHARD_CASES", 4)
    tasks = ("shape", "when", "pace", "tool")
    dataset.make(tmp_path, seed=6, num_cases=4, tasks=tasks, asked="spoken", workers=1)
    rows = rows_of(tmp_path)
    assert [row["task"] for row in rows] == [*tasks]
    for number, row in enumerate(rows):
        example = cases.make(seed=6, split="train", number=number, task=row["task"], asked="spoken")
        wanted = example.row()
        assert row["messages"] == wanted["messages"] and row["answer"] == wanted["answer"]
        for path, pixels in zip(row["images"], wanted["images"], strict=True):
            assert np.array_equal(load_image(tmp_path / path), pixels)
        for path, samples in zip(row["audios"], wanted["audios"], strict=True):
            assert np.array_equal(load_audio(tmp_path / path), samples)
        for path, content in zip(row["videos"], wanted["videos"], strict=True):
            assert (tmp_path / path).read_bytes() == content
        assert (row["speech"] is None) == (wanted["speech"] is None)
        if row["speech"]:
            said = speech.speak(example.case.speech, voice=row["speaker"], stretch=row["pace"])
            wanted = encode(said, format="flac", sample_rate=24_000)
            assert (tmp_path / row["speech"]).read_bytes() == wanted


def test_trainer_reads_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "ask", lambda text, **_: np.full(1600, 0.1, np.float32))
    count = 2 * len(cases.TASKS)
    dataset.make(tmp_path, seed=1, num_cases=count, tasks=cases.TASKS, speak=False, workers=1)
    for raw in rows_of(tmp_path):
        read = rows.read_row(raw, find=lambda name, kind: (kind, name)).conversation
        assert read.learned[-1] and not read.speech
        contents = [m["content"] for m in read.messages if isinstance(m["content"], list)]
        parts = [part for content in contents for part in content]
        media = [part[part["type"]] for part in parts if part["type"] != "text"]
        for kind, column in (("image", "images"), ("audio", "audios"), ("video", "videos")):
            assert [name for k, name in media if k == kind] == raw[column]
        assert not any("sound" in part for part in parts)  # a film's sound is its own


def test_interrupted_training_set_is_completed_without_redoing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "ask", lambda text, **_: np.full(1600, 0.1, np.float32))
    monkeypatch.setattr(dataset, "SHARD_CASES", 2)
    dataset.make(tmp_path, seed=5, num_cases=6, workers=1)
    before = files_of(tmp_path)
    broken = tmp_path / "shards" / "00001"
    broken.rename(broken.with_suffix(".part"))  # as an interruption leaves it
    (tmp_path / "data.jsonl").unlink()
    kept = tmp_path / "shards" / "00002" / "rows.jsonl"
    stamp = kept.stat().st_mtime_ns
    dataset.make(tmp_path, seed=5, num_cases=6, workers=1)
    assert files_of(tmp_path) == before and kept.stat().st_mtime_ns == stamp


def test_training_set_grows_and_does_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "ask", lambda text, **_: np.full(1600, 0.1, np.float32))
    monkeypatch.setattr(dataset, "SHARD_CASES", 2)
    dataset.make(tmp_path / "grown", seed=5, num_cases=3, workers=1)
    dataset.make(tmp_path / "grown", seed=5, num_cases=5, workers=1)
    dataset.make(tmp_path / "whole", seed=5, num_cases=5, workers=1)
    assert files_of(tmp_path / "grown") == files_of(tmp_path / "whole")
    with pytest.raises(ValueError, match="holds another set"):
        dataset.make(tmp_path / "grown", seed=6, num_cases=5)
    with pytest.raises(ValueError, match="unknown playroom task 'sing'"):
        dataset.make(tmp_path / "other", seed=5, num_cases=5, tasks=("sing",))
    with pytest.raises(ValueError, match="at least 1"):
        dataset.make(tmp_path / "other", seed=5, num_cases=0)


def test_full_disk_is_told_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "ask", lambda text, **_: np.full(1600, 0.1, np.float32))
    monkeypatch.setattr(dataset, "SHARD_CASES", 2)
    options = {"seed": 5, "num_cases": 6, "speak": False, "workers": 1}
    original, written = Path.write_bytes, []

    def write(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) > 5:
            raise OSError(28, "No space left on device")
        return original(path, content)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write)
        with pytest.raises(ValueError, match=r"No space left.*same command again"):
            dataset.make(tmp_path / "disk", **options)
    assert (tmp_path / "disk" / "shards" / "00000").exists()
    for name in ("disk", "whole"):
        dataset.make(tmp_path / name, **options)
    assert files_of(tmp_path / "disk") == files_of(tmp_path / "whole")


def test_a_worker_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of multiprocessing would wait for it for ever."""
    monkeypatch.setattr(dataset, "SHARD_CASES", 1)
    monkeypatch.setattr(cases, "make", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ValueError, match=r"a worker died, .* the same call"):
        dataset.make(tmp_path, seed=5, num_cases=4, workers=2)
    monkeypatch.undo()
    dataset.make(tmp_path, seed=5, num_cases=4, workers=1)


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
    rows, clips, messages = cases.hear(case, rng=np.random.default_rng(0), spoken=True)
    assert [row["text"] for row in rows] == ["the red bird.", "what did i say?"]
    assert len({row["voice"] for row in rows}) == 1 and clips[0].dtype == np.int16
    assert [part["type"] for part in messages[-1]["content"]] == ["audio", "audio"]
    _, _, typed = cases.hear(case, rng=np.random.default_rng(0), spoken=False)
    assert typed[-1]["content"][1] == {"type": "text", "text": "what did i say?"}


def test_reply_sentences_are_distinct_train_replies() -> None:
    items = dataset.reply_sentences(seed=3, count=800)
    assert items == dataset.reply_sentences(seed=3, count=800) and len(set(items)) == 800
    assert {voice for _, voice, _ in items} == set(speech.REPLY_VOICES)
    assert {stretch for _, _, stretch in items} == {1.0, 1.4, 0.8}
    assert all(text != talk.TOOL_CALL for text, _, _ in items)
    counted = {case.answer for case in talk.cases("test", "count")}
    assert not counted & {text for text, _, _ in items}
