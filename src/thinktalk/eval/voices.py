"""How the model speaks: a loaded model in, rows of a table out.

- reply speech: word error rate of an independent recogniser against the text of the reply, beside
  the same recogniser on flite's own rendering of that text (the ceiling). Whether the text is right
  is for other rows to say.
- pace: how much longer the same sentence is said slowly than quickly; at least 1.4 is wanted.
- pitch: share of voiced frames of vocoded true mel within 5 % of the wave the mel was made from.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from thinktalk.eval.metrics import pitch, pitch_agreement
from thinktalk.eval.recogniser import Recogniser, heard_error_rate
from thinktalk.eval.tasks import KEPT_MISSES, TYPED_TASKS, Row, Tick, percent, reply
from thinktalk.media.mel import voice_mel
from thinktalk.playroom import cases, senses, speech, talk
from thinktalk.playroom.cases import Example

# What the speech of a reply is measured on: half sentences to repeat, half answers of these.
ANSWER_TASKS = (
    *(task for task in TYPED_TASKS if task not in ("repeat", "pace")),
    *(task for task in senses.TASKS if senses.MEDIUM[task] == "image"),
)
PACE_GOAL = 1.4


def reply_speech(model: Any, *, count: int, seed: int, tick: Tick, voice: str) -> Iterator[Row]:
    """Word error rate of the model's own speech, and of flite's, with both language models."""
    ears = {name: Recogniser(name) for name in ("bigram", "unigram")}
    wanted: list[str] = []
    heard: dict[tuple[str, str], list[str]] = {}
    longer: list[float] = []
    pitches: dict[str, list[np.ndarray]] = {"model": [], "flite": []}
    for number in range(count):
        task = "repeat" if number % 2 == 0 else ANSWER_TASKS[number // 2 % len(ANSWER_TASKS)]
        example = _with_speech(seed, number, task)
        said = reply(model, example.messages, case=example.case, voice=voice, seed=seed)
        text = said.text.strip() or example.case.speech
        own, flite = said.audio, speech.speak(text, voice=voice)
        wanted.append(text)
        longer.append(len(own) / said.sample_rate / (len(flite) / speech.REPLY_HZ))
        for who, wave, hz in (("model", own, said.sample_rate), ("flite", flite, speech.REPLY_HZ)):
            pitches[who].append(pitch(wave, sample_hz=hz))
            for name, ear in ears.items():
                heard.setdefault((who, name), []).append(ear.transcribe(wave, sample_hz=hz))
        tick()
    for name in ears:
        rate, ceiling = (100 * heard_error_rate(heard[w, name], wanted) for w in ("model", "flite"))
        lines = [
            {"wanted": text, "heard": model_heard, "ceiling heard": flite_heard}
            for text, model_heard, flite_heard in zip(
                wanted, heard["model", name], heard["flite", name], strict=True
            )
            if model_heard != flite_heard
        ]
        label = f"{voice}, word error rate, {name}"
        yield Row("reply speech", label, count, rate, ceiling=ceiling, misses=lines[:KEPT_MISSES])
    ratio = float(np.mean(longer))
    yield Row("reply speech", f"{voice}, length beside flite's", count, ratio, "x", 1.0)
    level, target = (_median_pitch(pitches[who]) for who in ("model", "flite"))
    yield Row("reply speech", f"{voice}, median pitch", count, level, "Hz", target)


def pace(model: Any, *, count: int, seed: int, tick: Tick, voice: str) -> Iterator[Row]:
    """Slow against quick: mean ratio of lengths, and the share of pairs that reach the goal."""
    ratios, ceilings = [], []
    for number in range(count):
        text = cases.make(seed=seed, split="test", number=number, task="repeat").case.answer
        lengths, flites = [], []
        for word, stretch in talk.STRETCH.items():
            question = talk.PHRASES[word][0].format(a=text)
            said = reply(model, [talk.chat_message("user", question)], voice=voice, seed=seed)
            lengths.append(len(said.audio))
            flites.append(len(speech.speak(text, voice=voice, stretch=stretch)))
        ratios.append(lengths[0] / max(lengths[1], 1))
        ceilings.append(flites[0] / flites[1])
        tick()
    mean, goal = float(np.mean(ratios)), percent(np.array(ratios) >= PACE_GOAL)
    best = percent(np.array(ceilings) >= PACE_GOAL)
    yield Row("pace", f"{voice}, slow beside quick", count, mean, "x", float(np.mean(ceilings)))
    yield Row("pace", f"{voice}, pairs of at least {PACE_GOAL}", count, goal, ceiling=best)


def vocoder(model: Any, *, count: int, seed: int, tick: Tick, voice: str) -> Iterator[Row]:
    """Pitch of vocoded true mel beside the wave that the mel was made from."""
    network = model.omni.token2wav.code2wav_bigvgan_model
    place = next(network.parameters())
    shares = []
    for number in range(count):
        case = cases.make(seed=seed, split="test", number=number, task="repeat").case
        wave = speech.speak(case.answer, voice=voice)
        mel = torch.from_numpy(voice_mel(wave)).T[None].to(place)  # [1, 80, T]
        with torch.inference_mode():
            made = network(mel).float().cpu().numpy().reshape(-1)
        shares.append(100 * pitch_agreement(made, wave, sample_hz=speech.REPLY_HZ))
        tick()
    name = f"{voice}, pitch within 5 %"
    yield Row("vocoder on true mel", name, count, float(np.mean(shares)), ceiling=100.0)


def _with_speech(seed: int, number: int, task: str) -> Example:
    """A held-out typed case that is answered aloud: every second `tool` case is a call."""
    while True:
        example = cases.make(seed=seed, split="test", number=number, task=task)
        if example.case.speech:
            return example
        number += 1_000_000


def _median_pitch(tracks: Sequence[np.ndarray]) -> float:
    """Median over voiced frames in Hz; 0 where nothing is voiced."""
    voiced = np.concatenate(tracks)
    voiced = voiced[voiced > 0]
    return float(np.median(voiced)) if len(voiced) else 0.0
