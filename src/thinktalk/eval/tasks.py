"""The playroom's measurements: a loaded model in, rows of a table out.

Only held-out cases are asked, drawn evenly over the tasks, greedily decoded. What a row counts:

- typed, spoken: answers equal to the canonical one (lower case, no punctuation), by task and in
  all. Three tasks are always heard (dictation, transcribe, who), so only "spoken" has them.
- reply speech: word error rate of an independent recogniser against the canonical answer, beside
  the same recogniser on flite's own rendering of that answer (the ceiling).
- pace: how much longer the same sentence is said slowly than quickly; at least 1.4 is wanted.
- pitch: share of voiced frames of vocoded true mel within 5 % of the wave the mel was made from.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from thinktalk.eval.metrics import exact, pitch, pitch_agreement
from thinktalk.eval.recogniser import Recogniser, heard_error_rate
from thinktalk.generate import Answer, generate
from thinktalk.media.mel import voice_mel
from thinktalk.playroom import dataset, speech, talk
from thinktalk.playroom.talk import Case

HEARD_TASKS = ("dictation", "transcribe", "who")
TYPED_TASKS = tuple(task for task in talk.TASKS if task not in HEARD_TASKS)
# What the speech of a reply is measured on: half sentences to repeat, half answers of these.
ANSWER_TASKS = tuple(task for task in TYPED_TASKS if task not in ("repeat", "pace"))
PACE_GOAL = 1.4
# The longest answer counts from zero to twenty: a model that does not stop is cut here.
MAX_TEXT_TOKENS, MAX_CODEC_IDS = 160, 1000
KEPT_MISSES = 10  # wrong answers written into the results, per row

Tick = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One line of the table. value and ceiling: shares and rates in percent, else in `unit`."""

    group: str
    name: str
    cases: int
    value: float
    unit: str = "%"
    ceiling: float | None = None
    misses: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def answers(model: Any, *, cases: int, seed: int, voices: str | None, tick: Tick) -> Iterator[Row]:
    """Exact answers to typed questions (voices None) or to spoken ones ("train", "unseen")."""
    group = "typed" if voices is None else f"spoken, {VOICE_NAMES[voices]}"
    tasks = TYPED_TASKS if voices is None else talk.TASKS
    right: dict[str, list[bool]] = {task: [] for task in tasks}
    misses: list[dict[str, str]] = []
    for number in range(cases):
        task = tasks[number % len(tasks)]
        # The same seed draws the same questions for every kind of voice.
        case = talk.sample(np.random.default_rng([seed, number]), split="test", task=task)
        rng = np.random.default_rng([seed, number, 1])
        messages = messages_of(case, rng=rng, voices=voices)
        said = reply(model, messages, case=case)
        right[task].append(is_right(said, case))
        if not right[task][-1]:
            asked = case.heard or case.question
            misses.append({"task": task, "asked": asked, "wanted": case.answer, "said": said.text})
        tick()
    for task, marks in right.items():
        if marks:
            own = [miss for miss in misses if miss["task"] == task][:KEPT_MISSES]
            yield Row(group, task, len(marks), 100 * float(np.mean(marks)), misses=own)
    every = [mark for marks in right.values() for mark in marks]
    yield Row(group, "in all", len(every), 100 * float(np.mean(every)))


VOICE_NAMES = {"train": "training voices", "unseen": "unseen voices"}


def reply_speech(model: Any, *, cases: int, seed: int, voice: str, tick: Tick) -> Iterator[Row]:
    """Word error rate of the model's own speech, and of flite's, with both language models."""
    ears = {name: Recogniser(name) for name in ("bigram", "unigram")}
    wanted: list[str] = []
    heard: dict[tuple[str, str], list[str]] = {}
    longer: list[float] = []
    pitches: dict[str, list[np.ndarray]] = {"model": [], "flite": []}
    for number in range(cases):
        rng = np.random.default_rng([seed, number])
        task = "repeat" if number % 2 == 0 else ANSWER_TASKS[number // 2 % len(ANSWER_TASKS)]
        case = _with_speech(rng, task)
        said = reply(model, messages_of(case), case=case, voice=voice, seed=seed)
        own, flite = said.audio, speech.speak(case.speech, voice=voice)
        wanted.append(case.speech)
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
        yield Row("reply speech", label, cases, rate, ceiling=ceiling, misses=lines[:KEPT_MISSES])
    ratio = float(np.mean(longer))
    yield Row("reply speech", f"{voice}, length beside flite's", cases, ratio, "x", 1.0)
    level, target = (_median_pitch(pitches[who]) for who in ("model", "flite"))
    yield Row("reply speech", f"{voice}, median pitch", cases, level, "Hz", target)


def pace(model: Any, *, cases: int, seed: int, voice: str, tick: Tick) -> Iterator[Row]:
    """Slow against quick: mean ratio of lengths, and the share of pairs that reach the goal."""
    ratios, ceilings = [], []
    for number in range(cases):
        text = talk.sample(
            np.random.default_rng([seed, number]), split="test", task="repeat"
        ).answer
        lengths, flites = [], []
        for word, stretch in talk.STRETCH.items():
            question = talk.PHRASES[word][0].format(a=text)
            messages = [{"role": "user", "content": question}]
            said = reply(model, messages, voice=voice, seed=seed)
            lengths.append(len(said.audio))
            flites.append(len(speech.speak(text, voice=voice, stretch=stretch)))
        ratios.append(lengths[0] / max(lengths[1], 1))
        ceilings.append(flites[0] / flites[1])
        tick()
    mean, goal = float(np.mean(ratios)), 100 * float(np.mean(np.array(ratios) >= PACE_GOAL))
    best = 100 * float(np.mean(np.array(ceilings) >= PACE_GOAL))
    yield Row("pace", f"{voice}, slow beside quick", cases, mean, "x", float(np.mean(ceilings)))
    yield Row("pace", f"{voice}, pairs of at least {PACE_GOAL}", cases, goal, ceiling=best)


def vocoder(model: Any, *, cases: int, seed: int, voice: str, tick: Tick) -> Iterator[Row]:
    """Pitch of vocoded true mel beside the wave that the mel was made from."""
    network = model.omni.token2wav.code2wav_bigvgan_model
    place = next(network.parameters())
    shares = []
    for number in range(cases):
        rng = np.random.default_rng([seed, number])
        wave = speech.speak(talk.sample(rng, split="test", task="repeat").answer, voice=voice)
        mel = torch.from_numpy(voice_mel(wave)).T[None].to(place)  # [1, 80, T]
        with torch.inference_mode():
            made = network(mel).float().cpu().numpy().reshape(-1)
        shares.append(100 * pitch_agreement(made, wave, sample_hz=speech.REPLY_HZ))
        tick()
    name = f"{voice}, pitch within 5 %"
    yield Row("vocoder on true mel", name, cases, float(np.mean(shares)), ceiling=100.0)


def is_right(said: Answer, case: Case) -> bool:
    """Whether an answer is the canonical one; a call counts by its name and arguments."""
    if case.answer == talk.TOOL_CALL:
        return [(call.name, call.arguments) for call in said.tool_calls] == [("get_time", {})]
    return exact(said.text, case.answer)


def messages_of(
    case: Case, *, rng: np.random.Generator | None = None, voices: str | None = None
) -> list[dict[str, Any]]:
    """The chat messages of a case; spoken by a voice of the split `voices`, typed where None."""
    if voices is None:
        assert case.heard is None and case.question, case
        system = [("system", case.system)] if case.system is not None else []
        return [talk.chat_message(role, text) for role, text in (*system, *case.turns)]
    assert rng is not None, "a spoken case needs its random generator"
    _, clips, messages = dataset.hear(case, rng=rng, voices=voices)
    for message in messages:
        parts = message["content"]
        for part in parts if isinstance(parts, list) else []:
            if part["type"] == "audio":
                part["audio"] = clips[part["audio"]].astype(np.float32) / 32768
    return messages


def reply(
    model: Any,
    messages: list[dict[str, Any]],
    *,
    case: Case | None = None,
    voice: str | None = None,
    seed: int = 0,
) -> Answer:
    """The model's answer with the case's tools, aloud where a voice is given."""
    return generate(
        model,
        messages,
        voice=voice or next(iter(speech.REPLY_VOICES)),
        speak=voice is not None,
        tools=case.tools if case else None,
        seed=seed,
        max_text_tokens=MAX_TEXT_TOKENS,
        max_codec_ids=MAX_CODEC_IDS,
    )


def _with_speech(rng: np.random.Generator, task: str) -> Case:
    """A held-out case that is answered aloud."""
    while not (case := talk.sample(rng, split="test", task=task)).speech:
        pass
    return case


def _median_pitch(tracks: Sequence[np.ndarray]) -> float:
    """Median over voiced frames in Hz; 0 where nothing is voiced."""
    voiced = np.concatenate(tracks)
    voiced = voiced[voiced > 0]
    return float(np.median(voiced)) if len(voiced) else 0.0
