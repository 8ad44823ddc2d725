"""The playroom's questions: a loaded model in, rows of a table out.

Only held-out cases are asked, greedily decoded. An answer counts if it equals the canonical one
(lower case, no punctuation).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinktalk.eval.metrics import exact, normalise, word_error_rate
from thinktalk.generate import Answer, Rearrange, generate
from thinktalk.playroom import cases, senses, speech, talk
from thinktalk.playroom.cases import Asked, Example
from thinktalk.playroom.talk import Case

HEARD_TASKS = ("dictation", "transcribe", "who")  # what they are about is always heard
TYPED_TASKS = tuple(task for task in talk.TASKS if task not in HEARD_TASKS)
WRITTEN_TASKS = ("repeat", "dictation")  # also measured in words
# The longest answer counts from zero to twenty: a model that does not stop is cut here.
MAX_TEXT_TOKENS, MAX_CODEC_IDS = 160, 1000
KEPT_MISSES = 10  # wrong answers written into the results, per row
VOICE_NAMES = {"train": "training voices", "unseen": "unseen voices"}

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


def typed(model: Any, *, count: int, seed: int, tick: Tick) -> Iterator[Row]:
    """The talking tasks, typed, evenly mixed."""
    examples = mixed(TYPED_TASKS, count=count, seed=seed, asked="typed")
    marks = ask_all(model, examples, tick=tick)
    yield from marks.rows("typed")
    yield marks.in_all("typed")


def spoken(model: Any, *, count: int, seed: int, tick: Tick, voices: str) -> Iterator[Row]:
    """The same tasks and those that are always heard, asked aloud in "train" or "unseen" voices."""
    group = f"spoken, {VOICE_NAMES[voices]}"
    examples = mixed(talk.TASKS, count=count, seed=seed, asked="spoken", voices=voices)
    marks = ask_all(model, examples, tick=tick)
    yield from marks.rows(group)
    yield marks.in_all(group)


def single(
    model: Any,
    *,
    count: int,
    seed: int,
    tick: Tick,
    group: str,
    asked: Mapping[str, Sequence[Asked]],
) -> Iterator[Row]:
    """`count` cases of every task, asked in the task's ways in turn."""
    for task, ways in asked.items():
        examples = (
            cases.make(seed=seed, split="test", number=n, task=task, asked=ways[n % len(ways)])
            for n in range(count)
        )
        marks = ask_all(model, examples, tick=tick)
        yield from marks.rows(group)
        if task in WRITTEN_TASKS:
            yield marks.word_errors(group, task)


def aloud(model: Any, *, count: int, seed: int, tick: Tick) -> Iterator[Row]:
    """Questions about pictures, sounds and films, asked aloud; every second one about a film inside
    its own sound track."""
    group, tasks = "pictures, sounds, films, asked aloud", [*senses.TASKS]
    tasks.remove("look and talk")
    ways: tuple[Asked, Asked] = ("spoken", "inside")
    examples = (
        cases.make(
            seed=seed,
            split="test",
            number=n,
            task=tasks[n % len(tasks)],
            asked=ways[n // len(tasks) % 2],
        )
        for n in range(count)
    )
    marks = ask_all(model, examples, tick=tick)
    yield from marks.rows(group)
    yield marks.in_all(group)


def look_and_talk(model: Any, *, count: int, seed: int, tick: Tick) -> Iterator[Row]:
    """A picture and two spoken questions; both answers must be right, and the second one is given
    after the model's own first."""
    firsts, boths, misses = [], [], []
    for number in range(count):
        example = cases.make(
            seed=seed, split="test", number=number, task="look and talk", asked="spoken"
        )
        before, wanted, question = example.messages
        first = reply(model, [before]).text
        second = reply(model, [before, wanted | {"content": first}, question]).text
        firsts.append(exact(first, wanted["content"]))
        boths.append(firsts[-1] and exact(second, example.case.answer))
        if not boths[-1]:
            asked = f"{wanted['content']} {example.case.answer}"
            misses.append({"task": "look and talk", "wanted": asked, "said": f"{first} {second}"})
        tick()
    group = "look and talk, spoken"
    yield Row(group, "first answer", count, percent(firsts))
    yield Row(group, "both answers", count, percent(boths), misses=misses[:KEPT_MISSES])


def mixed(
    tasks: Sequence[str], *, count: int, seed: int, asked: Asked, voices: str = "train"
) -> Iterator[Example]:
    """`count` held-out cases of the tasks in turn; the same ones for every way of asking."""
    for number in range(count):
        task = tasks[number % len(tasks)]
        yield cases.make(
            seed=seed, split="test", number=number, task=task, asked=asked, voices=voices
        )


@dataclass
class Marks:
    """What was asked, wanted and said, by task."""

    said: dict[str, list[tuple[Case, Answer]]] = field(default_factory=dict)

    def rows(self, group: str) -> Iterator[Row]:
        """The share of right answers of every task."""
        for task, pairs in self.said.items():
            right = [is_right(answer, case) for case, answer in pairs]
            wrong = [pair for pair, ok in zip(pairs, right, strict=True) if not ok]
            misses = [
                {"asked": c.heard or c.question, "wanted": c.answer, "said": a.text}
                for c, a in wrong[:KEPT_MISSES]
            ]
            yield Row(group, task, len(pairs), percent(right), misses=misses)

    def in_all(self, group: str) -> Row:
        every = [is_right(a, c) for pairs in self.said.values() for c, a in pairs]
        return Row(group, "in all", len(every), percent(every))

    def word_errors(self, group: str, task: str) -> Row:
        """Word error rate of the sentences, without the words that every answer begins with."""
        pairs = [(_sentence(a.text), _sentence(c.answer)) for c, a in self.said[task]]
        rate = word_error_rate([said for said, _ in pairs], [wanted for _, wanted in pairs])
        return Row(group, f"{task}, word error rate", len(pairs), 100 * rate)


def ask_all(model: Any, examples: Iterator[Example], *, tick: Tick) -> Marks:
    """Asks every example once."""
    marks = Marks()
    for example in examples:
        said = reply(model, example.messages, case=example.case)
        marks.said.setdefault(example.case.task, []).append((example.case, said))
        tick()
    return marks


def is_right(said: Answer, case: Case) -> bool:
    """Whether an answer is the canonical one; a call counts by its name and arguments."""
    if case.answer == talk.TOOL_CALL:
        return [(call.name, call.arguments) for call in said.tool_calls] == [("get_time", {})]
    return exact(said.text, case.answer)


def reply(
    model: Any,
    messages: Sequence[dict[str, Any]],
    *,
    case: Case | None = None,
    voice: str | None = None,
    seed: int = 0,
    positions: Rearrange | None = None,
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
        positions=positions,
    )


def percent(marks: Sequence[bool] | NDArray[np.bool]) -> float:
    return 100 * float(np.mean(marks))


def _sentence(text: str) -> str:
    return normalise(text).removeprefix("you said ")
