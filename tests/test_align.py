"""Rows of sounds in the first stage of hearing: what is drawn, and what it is called."""

from pathlib import Path

import numpy as np
import pytest
import torch

from thinktalk.generate import load_tokenizer
from thinktalk.playroom import dataset, senses, sounds, talk
from thinktalk.playroom.words import COUNTED_SOUNDS, NUMBERS, SOUNDS
from thinktalk.train import align
from thinktalk.train.align import AlignTask, Recordings
from thinktalk.weights import find, load


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> AlignTask:
    folder: Path = tmp_path_factory.mktemp("questions")
    dataset.make_question_corpus(folder, seed=1, num_cases=6, task="dictation", workers=1)
    model = load(find("spark"), dtype=torch.float32)
    recordings = Recordings(folder)
    return AlignTask(model.omni.thinker, load_tokenizer(model.folder), recordings, recordings)


def test_rows_of_sounds_have_their_names_and_none_is_held_out() -> None:
    drawn = [align._row_of_sounds(np.random.default_rng(seed))[0] for seed in range(800)]
    alone = [names[0] for names in drawn if len(names) == 1]
    assert set(alone) == set(SOUNDS)
    of_a_kind = {(names[0], len(names)) for names in drawn if len(set(names)) == 1}
    assert {number for _, number in of_a_kind} == set(range(1, 7))
    for kind, number in of_a_kind:
        key = senses.key("how often", (kind, NUMBERS[number])) or ""
        assert number == 1 or (kind in COUNTED_SOUNDS and not talk.is_held_out(key))
    several = [names for names in drawn if len(set(names)) > 1]
    assert 240 < len(several) < 400 and {len(names) for names in several} == {3, 4, 5, 6}


def test_a_row_lasts_as_long_as_its_sounds() -> None:
    for names in (["beep"] * 4, ["drum", "rain", "drum"]):
        wave = sounds.row(names, rng=np.random.default_rng(3))
        least = sum(sounds.DURATIONS_S[name][0] for name in names)
        assert len(wave) / 16_000 > least + sounds.GAP_S[0] * (len(names) - 1)


def test_sounds_are_named_without_phones_and_not_masked(
    task: AlignTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(align, "SOUND_SHARE", 1.0)

    def masked(mel: align.Mel, rng: np.random.Generator) -> align.Mel:
        raise AssertionError("a mask would hide a sound")

    monkeypatch.setattr(align, "masked", masked)
    batch = task.batch(np.random.default_rng(0), 8)
    assert batch["phones_lengths"].tolist() == [0] * 8
    told = [
        task.transcriber.tokenizer.decode([word - 1 for word in words.tolist()]).split()
        for words in batch["words"].split(batch["words_lengths"].tolist())
    ]
    assert all(name in SOUNDS for names in told for name in names)
    monkeypatch.setattr(align, "SOUND_SHARE", 0.5)
    monkeypatch.setattr(align, "masked", lambda mel, rng: mel)
    mixed = task.batch(np.random.default_rng(0), 8)
    spoken = int((mixed["phones_lengths"] > 0).sum())
    assert 0 < spoken < 8 and (mixed["phones_lengths"][spoken:] == 0).all()
    assert all(np.isfinite(value.item()) for value in task.loss(mixed)[1].values())


def test_a_row_counts_as_right_if_every_sound_has_its_name(
    task: AlignTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perfect ears get 1, those that say "bell" once 0 or what one bell is worth."""
    monkeypatch.setattr(align, "TEST_CLIPS", 6)
    bell = [task.transcriber.tokenizer.encode(" bell")[0] + 1]
    wanted: list[list[list[int]]] = []

    def remembered(texts: list[str], rows: list[list[str]]) -> dict[str, torch.Tensor]:
        targets = original(texts, rows)
        words = targets["words"].split(targets["words_lengths"].tolist())
        wanted.append([each.tolist() for each in words])
        return targets

    original = task.transcriber.targets
    monkeypatch.setattr(task.transcriber, "targets", remembered)
    monkeypatch.setattr(task.transcriber, "transcribe", lambda *_: wanted[-1])
    assert task.evaluate().items() >= {"right": 1.0, "counted": 1.0}.items()
    monkeypatch.setattr(task.transcriber, "transcribe", lambda tokens, counts: [bell] * len(counts))
    share = np.mean([words == bell for words in wanted[-1]])
    assert task.evaluate().items() >= {"right": 0.0, "counted": share}.items()
