"""Sampled replies, what an ear makes of them, and the pairs that come of it."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_talk
import torch
from filelock import FileLock

from thinktalk.eval.metrics import pause_errors, pauses
from thinktalk.generate import Thought, load_tokenizer, talk
from thinktalk.media.prompt import Prompt
from thinktalk.options import OFFICIAL_SPEECH
from thinktalk.playroom import speech
from thinktalk.train import candidates
from thinktalk.train.candidates import draw_pairs, pairs_of
from thinktalk.train.ears import Ear, RecogniserError, command_ear
from thinktalk.train.shards import open_source
from thinktalk.train.takes import takes
from thinktalk.weights import LoadedModel, load

ROWS = [
    small_talk.coded("say it", "one two three", [1], "Ethan"),
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "and you?"}]},
                  {"role": "assistant", "content": "four five"}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return small_talk.build(tmp_path_factory.mktemp("small"))


@pytest.fixture(autouse=True)
def short_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "SPARE_IDS", 14)
    monkeypatch.setattr(candidates, "IDS_PER_LETTER", 0)


class Listener:
    """Hears what it is told to, in turn, and counts."""

    def __init__(self, *texts: str):
        self.texts, self.calls = texts, 0

    def __call__(self, samples: np.ndarray, *, sample_hz: int) -> str:
        assert sample_hz == 24_000 and len(samples) % 480 == 0
        self.calls += 1
        return self.texts[(self.calls - 1) % len(self.texts)]


def test_best_and_worst_become_a_row_that_training_reads(
    model: LoadedModel, tmp_path: Path
) -> None:
    ear = Listener("one two", "One, two, three!", "nine nine nine nine", "", "four", "four five")
    summary = draw_pairs(model, open_source(ROWS), tmp_path, ear=Ear(ear), samples=3)
    assert summary["prompts"] == summary["pairs"] == 2
    assert summary["word_error_rate"] == pytest.approx((1 + 0 + 4 + 2 + 1 + 0) / 15)
    source = open_source(tmp_path / "pairs.jsonl")
    first, second = (source.row(number) for number in range(2))
    assert first.conversation.messages[-1]["content"] == "one two three"
    assert first.conversation.speech[1].speaker == "Ethan"
    drawn = [json.loads(line) for line in (tmp_path / "candidates.jsonl").open()][1:]
    assert drawn[0]["candidates"][1]["codes"] == first.conversation.speech[1].codes
    assert first.rejected is not None and second.rejected is not None
    assert first.rejected.speech[1].codes == drawn[0]["candidates"][2]["codes"]
    assert second.conversation.messages[0]["content"] == [{"type": "text", "text": "and you?"}]
    codes = [tuple(c["codes"]) for entry in drawn for c in entry["candidates"]]
    assert len(set(codes)) == 6  # every reply is a draw of its own


def test_an_interrupted_draw_goes_on_and_draws_the_same(model: LoadedModel, tmp_path: Path) -> None:
    whole = Listener("one", "two", "one two three")
    draw_pairs(model, open_source(ROWS), tmp_path / "whole", ear=Ear(whole), samples=3)
    path = tmp_path / "legs" / "candidates.jsonl"
    first = Listener("one", "two", "one two three")
    draw_pairs(model, open_source(ROWS), path.parent, ear=Ear(first), samples=3, count=1)
    with path.open("a") as file:
        file.write('{"messages": [{"role"')  # killed while it wrote
    draw_pairs(model, open_source(ROWS), path.parent, ear=Ear(first), samples=3)
    assert first.calls == 6
    assert path.read_text() == (tmp_path / "whole" / "candidates.jsonl").read_text()
    with pytest.raises(ValueError, match="drawn from other rows or otherwise"):
        draw_pairs(model, open_source(ROWS), path.parent, ear=Ear(first), samples=2)


def test_two_do_not_draw_into_one_folder(model: LoadedModel, tmp_path: Path) -> None:
    ear = Ear(Listener("one two three"))
    with FileLock(tmp_path / "lock"), pytest.raises(ValueError, match="somebody else draws"):
        draw_pairs(model, open_source(ROWS), tmp_path, ear=ear, samples=2)


def test_takes_side_by_side_are_those_of_generation(model: LoadedModel) -> None:
    """Also where some end early: the untrained Talker is made to stop now and then."""
    omni = load(model.folder).omni
    stop = omni.talker.config.tts_codec_end_token_id
    with torch.inference_mode():
        hello = Prompt(np.array([257, 40, 41, 42], np.int64))
        thought = Thought(omni, hello, max_text_tokens=4)
        for token in (50, 51, 52):
            thought.feed(torch.tensor([token]))
        sampling, voice = replace(OFFICIAL_SPEECH, temperature=1.5), model.voices["Ethan"]
        drawn = partial(talk, thought, voice=voice, sampling=sampling, max_codec_ids=70)
        codes = list(drawn(seed=3))
        omni.talker.codec_head.weight[stop] = 1.02 * omni.talker.codec_head.weight[codes[5]]
        alone = [list(drawn(seed=seed)) for seed in range(5)]
        together = takes(thought, voice=voice, sampling=sampling, seeds=range(5), max_codec_ids=70)
    assert together == alone
    assert len({len(codes) for codes in alone}) > 1


def test_replies_alike_and_silent_ones_make_no_pair() -> None:
    def entry(*errors: int, codes: list[int]) -> dict[str, Any]:
        rest = {"codes": codes, "heard": "", "pause_errors": 0}
        made = [rest | {"word_errors": e, "errors": e} for e in errors]
        return {"messages": [], "tools": [], "text": "a", "voice": "Ethan", "candidates": made}

    assert not pairs_of(entry(2, 2, 2, codes=[1]))
    assert not pairs_of(entry(0, 3, codes=[]))
    (pair,) = pairs_of(entry(1, 0, 3, codes=[1]), most=2)
    assert pair["errors"] == [0, 3]
    found = pairs_of(entry(4, 0, 3, 0, 9, codes=[1]), most=5)
    assert [pair["errors"] for pair in found] == [[0, 9], [0, 4]]
    assert not pairs_of(entry(1, 9, codes=[1]))  # nothing is right


def test_rows_that_cannot_be_asked_are_told_and_left_out(
    model: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [small_talk.coded("hi", "hey", [1], "Nobody"), ROWS[0]]
    ear = Ear(Listener("one two three"))
    summary = draw_pairs(model, open_source(rows), tmp_path / "some", ear=ear, samples=1)
    assert summary["prompts"] == 1
    assert "the speaker 'Nobody' is unknown" in "".join(capsys.readouterr())
    with pytest.raises(ValueError, match="no row of the data can be used"):
        draw_pairs(model, open_source(rows[:1]), tmp_path / "none", ear=ear, samples=1)


def test_rows_whose_reply_is_not_spoken_are_left_out_and_counted(
    model: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask = {"role": "user", "content": "hi"}
    call = {"name": "look", "arguments": {}}
    replies = ({"tool_calls": [{"type": "function", "function": call}]}, {"content": " "})
    rows = [{"messages": [ask, {"role": "assistant", "content": "", **reply}]} for reply in replies]
    ear = Ear(Listener("one two three"))
    for _ in range(2):  # also where all of it was done before
        summary = draw_pairs(
            model, open_source([*rows, ROWS[0]]), tmp_path / "some", ear=ear, samples=1
        )
        assert summary["prompts"] == 1
    assert caplog.messages == ["left out 2 of 3 rows, whose last reply is not spoken"] * 2
    with pytest.raises(ValueError, match="no last reply in the 2 rows is spoken"):
        draw_pairs(model, open_source(rows), tmp_path / "none", ear=ear, samples=1)


def test_calls_that_the_model_makes_itself_are_not_spoken(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    said = load_tokenizer(model.folder).encode(call)
    monkeypatch.setattr(candidates, "think", lambda *_, **__: iter(said))
    rows = [{"messages": [{"role": "user", "content": "hi"}]}]
    with pytest.raises(ValueError, match="no last reply in the 1 rows is spoken"):
        draw_pairs(model, open_source(rows), tmp_path, ear=Ear(Listener("look")), samples=1)


def test_an_ear_may_be_any_program(tmp_path: Path) -> None:
    program = tmp_path / "ear.py"
    program.write_text("import sys, wave; print(wave.open(sys.argv[-1]).getnframes(), sys.argv[1])")
    ear = command_ear(f"{sys.executable} {program} --fast")
    assert ear.transcribe(np.zeros(480, np.float32), sample_hz=24_000) == "480 --fast"
    with pytest.raises(RecogniserError, match=r"failed with status 1 .*No such file"):
        command_ear(f"{sys.executable} -c 'open(chr(120))'").transcribe(
            np.zeros(480, np.float32), sample_hz=24_000
        )
    with pytest.raises(RecogniserError, match="'no-such-ear' is not installed"):
        command_ear("no-such-ear").transcribe(np.zeros(480, np.float32), sample_hz=24_000)


@pytest.mark.parametrize("voice", speech.REPLY_VOICES)
def test_pauses_of_real_speech_follow_its_commas(voice: str) -> None:
    wave = speech.speak("goodbye, see you soon.", voice=voice)
    (pause,) = pauses(wave, sample_hz=24_000)
    assert 0.3 < pause[0] < pause[1] < 0.8
    fluent = speech.speak("goodbye see you soon.", voice=voice)
    assert pause_errors(wave, "goodbye, see you soon.", sample_hz=24_000) == 0
    assert pause_errors(fluent, "goodbye, see you soon.", sample_hz=24_000) == 1
    assert pause_errors(fluent, "goodbye see you soon.", sample_hz=24_000) == 0


def test_a_long_pause_without_a_mark_is_an_error_and_so_is_a_misplaced_one() -> None:
    sound = 0.3 * np.sin(np.arange(24_000) * 0.2).astype(np.float32)
    silent = np.zeros(7200, np.float32)
    wave = np.concatenate((silent, sound, silent, sound, silent))
    assert [tuple(np.round(p, 2)) for p in pauses(wave, sample_hz=24_000)] == [(1.0, 1.3)]
    assert pause_errors(wave, "one two", sample_hz=24_000) == 1
    assert pause_errors(wave, "one, two", sample_hz=24_000) == 0
    assert pause_errors(wave, "a, long long long time", sample_hz=24_000) == 2
    assert pause_errors(np.zeros(0, np.float32), "a, b", sample_hz=24_000) == 1
