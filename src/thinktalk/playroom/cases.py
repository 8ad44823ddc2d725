"""Complete cases of the playroom: (seed, split, number) in, chat messages with media out.

A case is a pure function of these three (and of the task and the way of asking where they are
given): what is asked, the picture, sound or film, and the voice each have a random generator of
their own, so the same case may be asked typed and aloud. Train cases may stand in a longer
conversation, what is shown may be a message of its own, what is heard may be one recording together
with the question, there may be silence around it, and a spoken question may break off, to which the
right reply is none.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thinktalk.playroom import films, scenes, senses, sounds, speech, talk, writing
from thinktalk.playroom.films import Film
from thinktalk.playroom.senses import MEDIUM
from thinktalk.playroom.sounds import Samples
from thinktalk.playroom.talk import Case, Split
from thinktalk.playroom.words import NUMBERS

Row = dict[str, Any]
Message = dict[str, Any]
Clip = NDArray[np.int16]
# How a question is asked: written, aloud, or aloud in the sound track of the film it is about.
Asked = Literal["typed", "spoken", "inside"]

TASK_WEIGHTS = talk.TASK_WEIGHTS | senses.TASK_WEIGHTS
TASKS = tuple(TASK_WEIGHTS)
SPLITS: tuple[Split, ...] = ("train", "test")
SPOKEN_SHARE = 0.55  # of the train questions that may be typed or spoken
INSIDE_SHARE = 0.4  # of the spoken ones about films
JOINED_SHARE = 0.4  # of train turns with several recordings: they become one
JOIN_S = (0.05, 0.5)  # of silence between them
SILENT_SHARE = 0.3  # of train recordings have silence before them, a third of it behind them, too
SILENCE_S = (0.3, 2.0)
HISS_DB = (-75, -45)  # level of that silence
CUT_SHARE = 0.06  # of spoken train questions that can break off
CUT_AT = (0.3, 0.7)  # of their length
BEFOREHAND_SHARE = 0.3  # of train cases: media in a message of their own, as clients show them
# Of transcribe cases: questions and answers about media, which every page shows as they are said.
OVERHEARD_SHARES: dict[Split, float] = {"train": 0.3, "test": 0.15}
WRITTEN_SHARE = 0.3  # of train cases that count sounds
CHAT_SHARE = 0.2  # of train cases that stand in a longer conversation
CHAT_TASKS = ("greet", "add", "subtract", "multiply", "opposite", "german", "capital", "count")
NO_CHAT = ("tool", "transcribe")  # their system prompts are about nothing else
CUT_TASKS = ("add", "subtract", "multiply", "opposite", "german", "capital", "count")


@dataclass(frozen=True)
class Example:
    """A case as the model meets it.

    messages: the official chat format, up to the question; images are uint8 [H,W,3], audios
    float32 [n] at 16 kHz, videos the bytes of MP4 files. films: what the videos were made of.
    speaker: the reply voice.
    """

    case: Case
    messages: list[Message]
    speaker: str
    films: tuple[Film, ...] = ()

    def row(self) -> Row:
        """The training schema: tagged messages with the answer, and the media in lists.

        speech is the spoken text and pace its duration stretch; a tool call has no speech. Where a
        recording follows a film, parts take the place of the tags: "<video><audio>" would be a film
        and its sound.
        """
        row: Row = {"messages": [], "images": [], "audios": [], "videos": []}
        for message in self.messages:
            row["messages"].append(message | {"content": _tagged(message["content"], row)})
        row["messages"].append(talk.chat_message("assistant", self.case.answer))
        row |= {"speech": self.case.speech or None, "pace": self.case.pace}
        row |= {"speaker": self.speaker, "task": self.case.task, "key": self.case.key}
        if self.case.tools:
            row["tools"] = list(self.case.tools)
        return row | {"answer": self.case.answer}


def make(
    *,
    seed: int,
    split: Split,
    number: int,
    task: str | None = None,
    asked: Asked | None = None,
    voices: str = "train",
) -> Example:
    """Case `number` of a split.

    task: one of TASKS; else drawn, by TASK_WEIGHTS in training and evenly in tests. asked: else
    drawn in training, and typed in tests. What cannot be asked so is asked as it can: a dictation
    is heard even if its question is typed, a question about no film is not inside one.
    voices: who speaks, "train" or "unseen". Raises ValueError for an unknown task.
    """
    key = [seed, SPLITS.index(split), number]
    task = _known(task) if task else _any_task(np.random.default_rng(key), split)
    rngs = [np.random.default_rng([*key, TASKS.index(task), k]) for k in range(3)]
    case = draw(rngs[0], split=split, task=task)
    medium = MEDIUM.get(case.task)
    if asked is None:
        asked = _manner(rngs[0], medium) if split == "train" else "typed"
    asked = "spoken" if asked == "inside" and medium != "video" else asked
    first = 0  # the turn that shows what the case is about
    if split == "train" and case.task not in NO_CHAT and rngs[0].random() < CHAT_SHARE:
        case, first = _in_conversation(rngs[0], case)
    speaker = str(rngs[0].choice(list(speech.REPLY_VOICES)))
    _, clips, messages = hear(case, rng=rngs[2], voices=voices, spoken=asked != "typed")
    _fill_in(messages, clips)
    question = messages[-1]["content"].pop()["audio"] if asked == "inside" else None
    shown: tuple[Film, ...] = ()
    if split == "train" and asked == "typed" and _in_writing(rngs[1], case):
        part = messages[-1]["content"][0]
        part["text"] = _with_names(rngs[1], part["text"], counted(rngs[1], case))
    elif medium:
        part, shown = _media_part(rngs[1], case, split, question)
        place = first + sum(message["role"] == "system" for message in messages)
        asks = messages[place]["content"]
        if split == "train" and asks and rngs[0].random() < BEFOREHAND_SHARE:
            messages.insert(place, {"role": "user", "content": [part]})
        else:
            asks.insert(0, part)
    if split == "train":
        if asked == "spoken" and _may_break_off(case) and rngs[2].random() < CUT_SHARE:
            case = _broken_off(rngs[2], case, messages)
        joined = rngs[2].random() < JOINED_SHARE
        for message in messages if joined else ():
            message["content"] = _joined(rngs[2], message["content"])
        _surround(rngs[2], messages)
    return Example(case, messages, speaker, shown)


def draw(rng: np.random.Generator, *, split: Split, task: str | None = None) -> Case:
    """A case of any task, talking or seeing and hearing; see `make`."""
    task = _known(task) if task else _any_task(rng, split)
    if task == "transcribe" and rng.random() < OVERHEARD_SHARES[split]:
        return _overheard(rng, split)
    source = senses if task in MEDIUM else talk
    return source.sample(rng, split=split, task=task)


def hear(
    case: Case, *, rng: np.random.Generator, voices: str = "train", spoken: bool = True
) -> tuple[list[Row], list[Clip], list[Message]]:
    """What the user says in a case, in one voice: (clip rows, clips at 16 kHz, chat messages).

    A clip row has text, voice, gender and samples; {"type": "audio", "audio": k} stands for clip
    number k. spoken: whether questions are; what is heard anyway (a dictation) always is.
    """
    voice, gender = speech.pick_voice(rng, split=voices, gender=case.gender)
    rows: list[Row] = []
    clips: list[Clip] = []

    def say(text: str) -> Row:
        samples = speech.ask(text, rng=rng, voice=voice)
        rows.append({"text": text, "voice": voice, "gender": gender, "samples": len(samples)})
        clips.append(to_int16(samples))
        return {"type": "audio", "audio": len(clips) - 1}

    messages: list[Message] = []
    if case.system is not None:
        messages.append({"role": "system", "content": case.system})
    for number, (role, text) in enumerate(case.turns):
        if role != "user":
            messages.append(talk.chat_message(role, text))
            continue
        last = number == len(case.turns) - 1
        parts: list[Row] = [say(case.heard)] if last and case.heard else []
        if text:
            parts.append(say(text.lower()) if spoken else {"type": "text", "text": text})
        messages.append({"role": role, "content": parts})
    return rows, clips, messages


def to_int16(samples: NDArray[np.floating]) -> Clip:
    """Samples in -1..1 as 16-bit integers."""
    return np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)


def from_int16(clip: Clip) -> Samples:
    """The samples that a 16-bit file of the clip gives."""
    return clip.astype(np.float32) / np.float32(32768)


def picture(rng: np.random.Generator, case: Case, split: Split) -> scenes.Pixels:
    """What a case with a picture shows."""
    shown = case.shown
    match case.task:
        case "how many":
            colour, shape, number = shown
            count = NUMBERS.index(number)
            return scenes.counted_picture(rng, colour=colour, shape=shape, count=count, split=split)
        case "where":
            colour, shape, place = shown
            return scenes.placed_picture(rng, colour=colour, shape=shape, place=place, split=split)
        case "digit":
            return writing.digit_picture(rng, number=int(shown[0]), split=split)
        case "read":
            return writing.word_picture(rng, word=shown[0], split=split)
        case _:
            return scenes.shape_picture(rng, colour=shown[0], shape=shown[1], split=split)


def recording(rng: np.random.Generator, case: Case) -> Samples:
    """What is heard in a case with a sound."""
    if case.task == "sound":
        return sounds.single(case.shown[0], rng=rng)
    return sounds.row(counted(rng, case), rng=rng)


def counted(rng: np.random.Generator, case: Case) -> list[str]:
    """The sounds of a case of "how often", in their order."""
    kind, number, *others = case.shown
    count = NUMBERS.index(number)
    if kind == senses.ANY_SOUND:
        return sounds.any_kinds(count=count, rng=rng)
    if others:
        return sounds.among(kind, count=count, other=others[0], rng=rng)
    return [kind] * count


def film(
    rng: np.random.Generator, case: Case, split: Split, *, question: Samples | None = None
) -> Film:
    """What a case with a film shows; a question given is part of its sound."""
    match case.task, case.shown:
        case "motion", (colour, shape, motion):
            return films.motion_film(
                rng, colour=colour, shape=shape, motion=motion, split=split, question=question
            )
        case "when", (shape, sound, colour):
            return films.when_film(
                rng, shape=shape, sound=sound, colour=colour, split=split, question=question
            )
        case _, heard:
            return films.order_film(rng, heard=heard, split=split, question=question)
    raise AssertionError(case)


def _any_task(rng: np.random.Generator, split: Split) -> str:
    weights = np.array([TASK_WEIGHTS[t] if split == "train" else 1.0 for t in TASKS])
    return str(rng.choice(TASKS, p=weights / weights.sum()))


def _known(task: str) -> str:
    if task not in TASK_WEIGHTS:
        raise ValueError(f"unknown playroom task {task!r}: choose one of {', '.join(TASKS)}")
    return task


def _overheard(rng: np.random.Generator, split: Split) -> Case:
    """Writing down a question about a picture, sound or film, or its answer."""
    while True:
        other = senses.sample(rng, split=split)
        text = other.question if rng.random() < 0.5 else other.answer
        case = talk.write_down("transcribe", text.lower(), "")
        if talk.is_held_out(talk.sentence_key(text)) == (split == "test"):
            return case


def _manner(rng: np.random.Generator, medium: str | None) -> Asked:
    """How a train question is asked."""
    if rng.random() >= SPOKEN_SHARE:
        return "typed"
    return "inside" if medium == "video" and rng.random() < INSIDE_SHARE else "spoken"


def _in_conversation(rng: np.random.Generator, case: Case) -> tuple[Case, int]:
    """The case with other questions before it or between its turns; and where it begins."""
    others = [talk.sample(rng, split="train", task=str(rng.choice(CHAT_TASKS))) for _ in range(2)]
    small_talk = [turn for o in others for turn in (*o.turns, ("assistant", o.answer))]
    small_talk = small_talk[: int(rng.choice((2, 4)))]
    between = len(case.turns) > 1 and rng.random() < 0.6
    at = 2 if between else 0
    turns = (*case.turns[:at], *small_talk, *case.turns[at:])
    return replace(case, turns=turns), 0 if between else len(small_talk)


def _fill_in(messages: list[Message], clips: list[Clip]) -> None:
    """Puts the samples into the messages, in place of their numbers."""
    for part in _recordings(messages):
        part["audio"] = from_int16(clips[part["audio"]])


def _recordings(messages: list[Message]) -> list[Row]:
    """The parts of the messages that are heard, in order."""
    contents = [m["content"] for m in messages if isinstance(m["content"], list)]
    return [part for content in contents for part in content if part["type"] == "audio"]


def _media_part(
    rng: np.random.Generator, case: Case, split: Split, question: Samples | None
) -> tuple[Row, tuple[Film, ...]]:
    """The part of the message that shows what the case is about."""
    medium = MEDIUM[case.task]
    if medium == "image":
        return {"type": "image", "image": picture(rng, case, split)}, ()
    if medium == "audio":
        return {"type": "audio", "audio": from_int16(to_int16(recording(rng, case)))}, ()
    made = film(rng, case, split, question=question)
    return {"type": "video", "video": made.mp4()}, (made,)


def _in_writing(rng: np.random.Generator, case: Case) -> bool:
    """Whether sounds are not heard but named, each as often as it sounds: a decoder counts words
    long before it counts what an ear makes of sounds, and the ear learns to say these words."""
    return case.task == "how often" and rng.random() < WRITTEN_SHARE


def _with_names(rng: np.random.Generator, question: str, kinds: list[str]) -> str:
    names = str(rng.choice((" ", ", "))).join(kinds)
    return f"{names}. {question}" if rng.random() < 0.7 else f"{question} {names}"


def _joined(rng: np.random.Generator, content: Any) -> Any:
    """The content with neighbouring recordings as one, a pause between them."""
    if not isinstance(content, list):
        return content
    out: list[Row] = []
    for part in content:
        if out and part["type"] == out[-1]["type"] == "audio":
            pause = np.zeros(int(rng.uniform(*JOIN_S) * speech.INPUT_HZ), np.float32)
            out[-1] = part | {"audio": np.concatenate((out[-1]["audio"], pause, part["audio"]))}
        else:
            out.append(part)
    return out


def _may_break_off(case: Case) -> bool:
    """Whether no beginning of the question is a question itself."""
    return case.task in CUT_TASKS or MEDIUM.get(case.task) is not None


def _broken_off(rng: np.random.Generator, case: Case, messages: list[Message]) -> Case:
    """The case whose last recording, the question, ends too early; the reply is empty."""
    question = messages[-1]["content"][-1]
    samples = question["audio"]
    question["audio"] = samples[: round(len(samples) * rng.uniform(*CUT_AT))]
    return replace(case, answer="", pace=1.0)


def _surround(rng: np.random.Generator, messages: list[Message]) -> None:
    """Silence around some recordings, as a microphone hears it."""
    for part in _recordings(messages):
        if rng.random() < SILENT_SHARE:
            before = _silence(rng)
            after = _silence(rng) if rng.random() < 1 / 3 else before[:0]
            part["audio"] = np.concatenate((before, part["audio"], after))


def _silence(rng: np.random.Generator) -> Samples:
    count = round(rng.uniform(*SILENCE_S) * speech.INPUT_HZ)
    level = 10 ** (rng.uniform(*HISS_DB) / 20)
    return from_int16(to_int16(level * rng.standard_normal(count)))


def _tagged(content: str | list[Row], row: Row) -> str | list[Row]:
    """Content with <image>, <audio> and <video>; their media go into the lists of the row."""
    if isinstance(content, str):
        return content
    for part in content:
        if part["type"] != "text":
            row[f"{part['type']}s"].append(part[part["type"]])
    text = "".join(part.get("text", f"<{part['type']}>") for part in content)
    if "<video><audio>" not in text:
        return text
    return [part if part["type"] == "text" else {"type": part["type"]} for part in content]
