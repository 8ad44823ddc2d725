"""Streaming equals generate: the same text, codec ids and sound with the same seed, however the
question came and in whatever order the work was done, alone or beside others.

Sound: live, bit-equal whatever the pieces; against generate up to what lies outside of the context
that the live vocoder waits for (Token2Wav.practical_context), and rounding.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from live_stage import SHORT, Said, Stage, of_kind, push
from omni_cases import sound
from tiny import GEOMETRIES

import thinktalk
from thinktalk import Answer, Sampling
from thinktalk.live import api, scheduler
from thinktalk.live.session import LiveSession
from thinktalk.media.decode import load_audio
from thinktalk.media.prompt import Prompt
from thinktalk.weights import LoadedModel

GENERATE = import_module("thinktalk.generate")
QUESTION_WAV = Path(__file__).parents[1] / "examples" / "question.wav"
LIMITS = {**SHORT, "max_codec_ids": 28}  # two whole blocks of 12 and a part
# Of the largest sample; measured 6e-7 with random weights, 4e-7 to 7e-6 on spark.
TOLERANCE = {"7b": 5e-6, "3b": 5e-6, "spark": 5e-5}
HOT = Sampling(temperature=0.8, top_k=20)
WORDS = ["Hello", "What is this?", "Tell me more about it, please.", "Why?"]


@pytest.fixture
def model(request, tiny_checkpoint: Callable[[str], Path]) -> LoadedModel:
    name = getattr(request, "param", "7b")
    return load(name if name == "spark" else str(tiny_checkpoint(name)))


@cache
def load(name: str) -> LoadedModel:
    return thinktalk.load(name)


everywhere = pytest.mark.parametrize("model", [*GEOMETRIES, "spark"], indirect=True)


def listened(model: LoadedModel, wave: np.ndarray, size: int, **settings) -> Said:
    """The reply to a question that is heard in pieces, with ticks between them."""
    stage = Stage(model, max_sessions=1)
    session = stage.open(**{**LIMITS, **settings})
    for start in range(0, len(wave), size):
        push(session, wave[start : start + size])
        if start // size % 50 == 0:
            stage.run(1)
    session.commit()
    said = stage.reply(session)
    stage.close()
    return said


def asked(stage: Stage, session: LiveSession, words: str) -> None:
    session.push_text(words)
    session.commit()


def same(said: Said, answer: Answer, tolerance: float) -> None:
    assert said.ids == (answer.text_ids, answer.codec_ids)
    assert said.text == said.done.text == answer.text
    assert said.done.audio_ms == len(answer.audio) // 24
    close(said.wave, answer.audio, tolerance)


def close(wave: np.ndarray, other: np.ndarray, tolerance: float) -> None:
    assert wave.shape == other.shape and wave.dtype == other.dtype == np.float32
    error = float(np.abs(wave - other).max() / np.abs(other).max())
    assert error <= tolerance, error


# ---- how the question comes


@everywhere
def test_any_pieces_of_sound(model: LoadedModel, request) -> None:
    """20 ms, 2 s, all at once; more than one window, the last one short."""
    name = request.node.callspec.params["model"]
    wave = load_audio(str(QUESTION_WAV)) if name == "spark" else sound(4.31)
    answer = thinktalk.generate(model, [wave], seed=3, **LIMITS)
    assert len(answer.codec_ids) == 28, "a question that has a long answer"
    heard = [listened(model, wave, size, seed=3) for size in (320, 32_000, len(wave))]
    for said in heard:
        same(said, answer, TOLERANCE[name])
        assert np.array_equal(said.wave, heard[0].wave)


def test_sample_by_sample(model: LoadedModel) -> None:
    wave = sound(0.13)
    answer = thinktalk.generate(model, [wave], seed=1, **LIMITS)
    same(listened(model, wave, 1, seed=1), answer, TOLERANCE["7b"])


@pytest.mark.parametrize("rate", [8_000, 24_000, 48_000])
def test_other_rates_and_kinds_of_samples(model: LoadedModel, rate: int) -> None:
    """PCM16 at any rate, whatever the pieces: the same as all at once."""
    pcm = (sound(1.1) * 32767).astype(np.int16)
    replies = []
    for size in (rate // 50, 777, len(pcm)):
        stage = Stage(model, max_sessions=1)
        session = stage.open(**LIMITS)
        for start in range(0, len(pcm), size):
            session.push_audio(pcm[start : start + size].tobytes(), sample_rate=rate)
        session.commit()
        replies.append(stage.reply(session))
        stage.close()
    for said in replies[1:]:
        assert said.ids == replies[0].ids and np.array_equal(said.wave, replies[0].wave)


def test_the_exact_ear(model: LoadedModel) -> None:
    """Every turn is heard again with its own loudest sound, as generate(exact=True) hears it."""
    wave = np.concatenate([0.01 * sound(2.5), sound(1.7)]).astype(np.float32)
    options = {"speak": False, "max_text_tokens": 6}
    exact = thinktalk.generate(model, [wave], exact=True, **options)
    running = thinktalk.generate(model, [wave], **options)
    assert exact.text_ids != running.text_ids, "a sound that tells them apart"
    assert listened(model, wave, 320, exact_ear=True, **options).text_ids == exact.text_ids
    assert listened(model, wave, 320, **options).text_ids == running.text_ids


def test_all_kinds_of_input_in_one_turn(model: LoadedModel) -> None:
    picture = np.random.default_rng(1).integers(0, 255, (84, 112, 3), np.uint8)
    stage = Stage(model, max_sessions=1)
    session = stage.open(**LIMITS)
    session.push_text("First this:")
    session.push_image(picture)
    session.push_media(sound(2.4), kind="audio")
    session.push_text("And then?")
    stage.run(2)
    session.push_text(" Well?")
    session.commit()
    content = [
        {"type": "text", "text": "First this:"},
        {"type": "image", "image": picture},
        {"type": "audio", "audio": sound(2.4)},
        {"type": "text", "text": "And then? Well?"},
    ]
    answer = thinktalk.generate(model, [{"role": "user", "content": content}], **LIMITS)
    same(stage.reply(session), answer, TOLERANCE["7b"])
    stage.close()


# ---- in which order the work is done


def gated(monkeypatch: pytest.MonkeyPatch, name: str, gate: Callable[[int], bool]) -> None:
    """Lets one of the scheduler's decisions find work only in some of its calls."""
    calls, original = [0], getattr(scheduler, name)

    def decide(*args, **kwargs):
        calls[0] += 1
        return original(*args, **kwargs) if gate(calls[0]) else []

    monkeypatch.setattr(scheduler, name, decide)


PACES = {
    "prompts in pieces of 7": lambda patch: patch.setattr(scheduler, "PREFILL_POSITIONS", 7),
    "the voice when all ids are there": lambda p: gated(p, "to_voice", lambda n: n > 40),
    "the voice now and then": lambda p: gated(p, "to_voice", lambda n: n % 17 == 0),
    "the Talker when the text is there": lambda p: gated(p, "to_speak", lambda n: n > 12),
    "the Thinker slower than the Talker": lambda p: gated(p, "to_think", lambda n: n % 3 == 0),
    "the Talker's prompt late": lambda p: gated(p, "to_tell", lambda n: n > 5),
}


@pytest.mark.parametrize("pace", PACES)
def test_any_order_of_work(model: LoadedModel, monkeypatch, pace: str) -> None:
    """However ids and rows arrive at the next stage: the same ids, and the same bits of sound."""
    wave = sound(2.2)
    expected = listened(model, wave, len(wave))
    PACES[pace](monkeypatch)
    stage = Stage(model, max_sessions=1)
    session = stage.open(**LIMITS)
    push(session, wave)
    session.commit()
    for _ in range(200):  # a gate that is closed looks like nothing to do
        stage.engine.step()
    said = stage.reply(session)
    stage.close()
    assert said.ids == expected.ids and np.array_equal(said.wave, expected.wave)


@pytest.mark.parametrize("solver", ["midpoint", "rk4"])
def test_another_solver(model: LoadedModel, solver) -> None:
    answer = thinktalk.generate(model, [WORDS[0]], **LIMITS)
    voice = model.voices["Chelsie"]
    token2wav = model.omni.token2wav
    wave = token2wav.synthesize(
        torch.tensor([answer.codec_ids]),
        cond=voice.cond,
        ref_mel=voice.ref_mel,
        schedule=token2wav.code2wav_dit_model.schedule(solver),
    )
    stage = Stage(model, max_sessions=1, solver=solver)
    session = stage.open(**LIMITS)
    asked(stage, session, WORDS[0])
    said = stage.reply(session)
    assert said.codec_ids == answer.codec_ids
    close(said.wave, wave[0].numpy(), TOLERANCE["7b"])
    stage.close()


# ---- several turns


@pytest.mark.parametrize("model", GEOMETRIES, indirect=True)
def test_later_turns(model: LoadedModel, monkeypatch) -> None:
    """Reply n is generate's to all the ids before it, with seed + n."""
    stage = Stage(model, max_sessions=1)
    session = stage.open(seed=5, speech=HOT, **LIMITS)
    push(session, sound(2.6), size=1000)
    session.commit()
    stage.reply(session)
    for number, words in enumerate(WORDS[:2], 1):
        ids = [i for item in stage.memory(session).items for p in item.pieces for i in p.ids]
        asked(stage, session, words)
        said = stage.reply(session)
        turn, reply = stage.memory(session).items[-2:]
        ids += [i for piece in (*turn.pieces, reply.pieces[0]) for i in piece.ids]
        prompt = GENERATE.build_prompt(
            [sound(2.6)],
            tokenizer=stage.engine.kit.tokenizer,
            config=model.config.thinker_config,
            processor=stage.engine.kit.processor,
        )
        with monkeypatch.context() as patch:
            whole = Prompt(np.array(ids), mels=prompt.mels)
            patch.setattr(GENERATE, "build_prompt", lambda *_, whole=whole, **__: whole)
            answer = thinktalk.generate(model, [words], seed=5 + number, speech=HOT, **LIMITS)
        same(said, answer, TOLERANCE["7b"])
    stage.close()


@pytest.mark.parametrize("model", ["spark"], indirect=True)
def test_a_second_turn_with_words(model: LoadedModel) -> None:
    """With a trained model's replies, which are written as their text is: generate takes the
    whole conversation."""
    stage = Stage(model, max_sessions=1)
    session = stage.open(**{**LIMITS, "max_text_tokens": 40})
    first, second = "What is the capital of France?", "What is three plus four?"
    asked(stage, session, first)
    said = stage.reply(session)
    assert said.done.status == "incomplete", "its speech is cut"
    asked(stage, session, second)
    talk = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": said.text},
        {"role": "user", "content": second},
    ]
    answer = thinktalk.generate(model, talk, seed=1, **{**LIMITS, "max_text_tokens": 40})
    same(stage.reply(session), answer, TOLERANCE["spark"])
    stage.close()


@pytest.mark.parametrize("voice", ["Chelsie", "Ethan"])
def test_stream(model: LoadedModel, voice: str) -> None:
    options = {"voice": voice, "seed": 2, "text": HOT, "system": "Be brief.", **LIMITS}
    answer = thinktalk.generate(model, [WORDS[2]], **options)
    events = list(thinktalk.stream(model, [WORDS[2]], **options))
    assert "".join(event.text for event in of_kind(events, api.TextDelta)) == answer.text
    waves = [event.samples for event in of_kind(events, api.AudioDelta)]
    close(np.concatenate(waves), answer.audio, TOLERANCE["7b"])
    assert isinstance(events[-1], api.ResponseDone)


def test_stream_of_text(model: LoadedModel) -> None:
    answer = thinktalk.generate(model, [WORDS[1]], speak=False, max_text_tokens=5)
    *events, done = thinktalk.stream(model, [WORDS[1]], speak=False, max_text_tokens=5)
    assert "".join(event.text for event in of_kind(events, api.TextDelta)) == answer.text
    assert isinstance(done, api.ResponseDone) and done.audio_ms == 0
    assert not of_kind(events, api.AudioDelta) and done.usage.output_text == 5
    with pytest.raises(ValueError, match="unknown voice 'Nobody'"):
        list(thinktalk.stream(model, [WORDS[1]], voice="Nobody"))
    with pytest.raises(ValueError, match="the system prompt and tools have"):
        list(thinktalk.stream(model, [WORDS[1]], system="x" * 20_000))
    with pytest.raises(ValueError, match="too long"):
        list(thinktalk.stream(model, ["x" * 40_000]))
