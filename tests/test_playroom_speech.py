"""Synthesis, input voices and word times (needs flite and espeak-ng)."""

import shutil

import numpy as np
import pytest

from thinktalk.eval.metrics import pitch
from thinktalk.playroom import speech

TEXT = "the red bird is happy and the lion is old."


def level_db(samples: np.ndarray) -> float:
    return 10 * float(np.log10(np.mean(samples**2)))


def test_reply_is_deterministic_and_made_of_whole_codec_ids() -> None:
    for voice in speech.REPLY_VOICES:
        first, again = (speech.speak(TEXT, voice=voice) for _ in range(2))
        assert first.dtype == np.float32 and np.array_equal(first, again)
        assert len(first) % speech.CODEC_ID_SAMPLES == 0
        assert 0.1 < np.abs(first).max() <= 1


def test_voices_have_their_stated_pitch() -> None:
    levels = {}
    for voice in speech.REPLY_VOICES:
        track = pitch(speech.speak(TEXT, voice=voice), sample_hz=speech.REPLY_HZ)
        levels[voice] = float(np.mean(track[track > 0]))
    assert 160 < levels["Chelsie"] < 190
    # Clear of 100 Hz, the mel rate, which vocoders lock on to.
    assert 115 < levels["Ethan"] < 135


def test_raised_voice_keeps_its_durations() -> None:
    slow, _ = speech.flite(TEXT, voice="rms")
    raised = speech.utter(TEXT, voice="Ethan")
    spoken_s = raised.words[-1][2] - raised.words[0][1]
    assert spoken_s == pytest.approx(len(slow) / speech.FLITE_HZ - 0.35, abs=0.15)


def test_stretch_changes_the_length_enough_for_pace() -> None:
    for voice in speech.REPLY_VOICES:
        slow, quick = (len(speech.speak(TEXT, voice=voice, stretch=s)) for s in (1.4, 0.8))
        assert slow > 1.4 * quick


@pytest.mark.parametrize("voice", list(speech.REPLY_VOICES))
def test_word_times_follow_the_sound(voice: str) -> None:
    text = "four, frosch a löwe, you said: weiß."
    said = speech.utter(text, voice=voice)
    assert [index for index, _, _ in said.words] == list(range(len(text.split())))
    assert speech.phones(text, voice=voice) == said.words
    ends = [0.0]
    for _, start, end in said.words:
        assert ends[-1] - 1e-6 <= start < end
        ends.append(end)
    assert ends[-1] == pytest.approx(len(said.samples) / 24_000 - speech.TAIL_S, abs=0.06)
    # The pauses after the commas are silent, the words are not.
    for before, after in ((0, 1), (3, 4)):
        pause = said.samples[
            int((said.words[before][2] + 0.02) * 24_000) : int(said.words[after][1] * 24_000)
        ]
        word = said.samples[int(said.words[after][1] * 24_000) : int(said.words[after][2] * 24_000)]
        assert level_db(pause) < level_db(word) - 15


def test_phones_are_aligned_by_least_edits() -> None:
    expected = ["dh", "ax", "r", "eh", "d"]
    assert speech._align(expected, expected) == [0, 1, 2, 3, 4]
    assert speech._align(expected, ["dh", "iy", "r", "eh", "d"]) == [0, 1, 2, 3, 4]
    assert speech._align(expected, ["dh", "r", "eh", "d", "d"])[:2] == [0, 2]


def test_asking_is_seeded_varied_and_never_too_loud() -> None:
    one, same, other = (
        speech.ask("what is my name?", rng=np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(one, same) and len(one) != len(other)
    rng = np.random.default_rng(0)
    levels = []
    for _ in range(12):
        samples = speech.ask("hello.", rng=rng)
        assert samples.dtype == np.float32 and np.abs(samples).max() <= 1
        levels.append(level_db(samples))
    assert max(levels) - min(levels) > 6


def test_training_never_hears_the_unseen_voices() -> None:
    rng = np.random.default_rng(0)
    train = {speech.pick_voice(rng)[0] for _ in range(2000)}
    unseen = {speech.pick_voice(rng, split="unseen") for _ in range(50)}
    assert train == set(speech.FLITE_INPUTS) | set(speech.ESPEAK_INPUTS)
    assert unseen == {("f5", "woman"), ("m8", "man")}
    assert not train & {name for name, _ in unseen}
    for gender in ("man", "woman"):
        assert {speech.pick_voice(rng, gender=gender)[1] for _ in range(50)} == {gender}


def test_every_input_voice_really_differs() -> None:
    voices = [*speech.ESPEAK_INPUTS, *speech.UNSEEN_VOICES]
    said = {voice: speech.espeak("hello there", voice=f"en-us+{voice}") for voice in voices}
    plain = speech.espeak("hello there", voice="en-us")
    waves = [samples.tobytes() for samples in (plain, *said.values())]
    assert len(set(waves)) == len(waves)


def test_unknown_variant_is_an_error_although_espeak_takes_it() -> None:
    with pytest.raises(ValueError, match="no voice variant 'zzz'"):
        speech.espeak("hello", voice="en-us+zzz")


def test_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    speech._program.cache_clear()
    with pytest.raises(ValueError, match="apt-get install flite"):
        speech.speak("hello.", voice="Chelsie")


def test_unknown_reply_voice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown reply voice 'Bob'.*Chelsie"):
        speech.speak("hello.", voice="Bob")
    with pytest.raises(ValueError, match="no word to say"):
        speech.speak("...", voice="Ethan")


@pytest.mark.parametrize("rates", [(16_000, 24_000), (22_050, 16_000), (19_200, 24_000)])
def test_resampling_keeps_a_tone(rates: tuple[int, int]) -> None:
    source_hz, target_hz = rates

    def tone(hz: int) -> np.ndarray:
        seconds = np.arange(hz) / hz
        return np.sin(2 * np.pi * 440 * seconds) * np.hanning(hz)

    made = speech.resample(tone(source_hz), source_hz=source_hz, target_hz=target_hz)
    assert len(made) == target_hz
    assert np.abs(made - tone(target_hz)).max() < 1e-3
