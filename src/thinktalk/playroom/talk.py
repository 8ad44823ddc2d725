"""The talking part of the playroom: a random generator in, questions with canonical answers out.

`sample` draws one `Case`; `cases` lists the finite tasks; `is_held_out` is the split rule.
Train cases are paraphrased, in any letter case, with or without an end mark; test cases use the
canonical questions. A case tells *what* is said; `speech.py` and `dataset.py` say it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np

from thinktalk.playroom.sentences import sentence
from thinktalk.playroom.words import (
    CAPITALS,
    COLOURS,
    COUNTED_SOUNDS,
    FUNCTION_WORDS,
    GERMAN,
    GREETINGS,
    MOTIONS,
    NAMES,
    NUMBERS,
    OPPOSITES,
    PHRASES,
    PLACES,
    PLURALS,
    SOUNDS,
)

Split = Literal["train", "test"]
T = TypeVar("T")
Turn = tuple[str, str]  # (role, text)

# Shares of the training mixture; test cases are drawn evenly over the tasks unless one is named.
TASK_WEIGHTS = {
    "greet": 3, "name": 4, "persona": 4, "add": 8, "subtract": 8, "multiply": 5, "opposite": 5,
    "german": 6, "capital": 4, "count": 6, "repeat": 20, "pace": 8, "dictation": 16,
    "transcribe": 9, "who": 4, "tool": 3,
}  # fmt: skip
TASKS = tuple(TASK_WEIGHTS)
SUMS = {"add": ("plus", "+"), "subtract": ("minus", "-"), "multiply": ("times", "*")}
STRETCH = {"slowly": 1.4, "quickly": 0.8}

GET_TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Tells the current hour.",
        "parameters": {"type": "object", "properties": {}},
    },
}
TOOL_CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


@dataclass(frozen=True)
class Case:
    """One question and its canonical answer.

    turns: (role, text) pairs; earlier turns first, the last is the question ("" where there is
    none: transcribe) or, for the second half of `tool`, the tool's result.
    heard: a sentence the user speaks before the question of the last turn, always as sound.
    gender: "man" or "woman" where the answer depends on the voice that says `heard`.
    pace: duration stretch the spoken answer should have (1.4 slow, 0.8 quick).
    shown: what the picture, sound or film before the first question shows (senses.py).
    """

    task: str
    key: str | None
    turns: tuple[Turn, ...]
    answer: str
    heard: str | None = None
    gender: str | None = None
    system: str | None = None
    tools: tuple[dict, ...] | None = None
    pace: float = 1.0
    shown: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The last turn's text."""
        return self.turns[-1][1]

    @property
    def spoken(self) -> bool:
        """Whether the question may also be asked aloud."""
        return self.turns[-1][0] == "user" and bool(self.question)

    @property
    def speech(self) -> str:
        """The words of the spoken reply: none for a tool call."""
        return "" if self.answer == TOOL_CALL else self.answer


def sample(rng: np.random.Generator, *, split: Split, task: str | None = None) -> Case:
    """One case of a split; of a task drawn by TASK_WEIGHTS (test: evenly) unless one is named."""
    if task is None:
        weights = np.array([TASK_WEIGHTS[t] if split == "train" else 1.0 for t in TASKS])
        task = str(rng.choice(TASKS, p=weights / weights.sum()))
    if task not in TASK_WEIGHTS:
        raise ValueError(f"unknown playroom task {task!r}: choose one of {', '.join(TASKS)}")
    while True:
        case = _draw(rng, task, split)
        if case.key is None or is_held_out(case.key) == (split == "test"):
            break
    if split == "test" or not case.question or case.turns[-1][0] == "tool":
        return case
    turns = tuple((r, vary_letters(rng, t) if r == "user" else t) for r, t in case.turns)
    return replace(case, turns=turns)


def cases(split: Split, task: str) -> list[Case]:
    """All canonical cases of a finite task (facts stand in both splits); [] for open tasks."""
    found = list(_enumerate(task))
    return [c for c in found if c.key is None or is_held_out(c.key) == (split == "test")]


def all_answers() -> list[str]:
    """Every distinct spoken answer of the finite tasks, in a fixed order."""
    finite = [case for task in TASKS for case in _enumerate(task)]
    return list(dict.fromkeys(case.speech for case in finite if case.speech))


def vocabulary() -> list[str]:
    """Every word of the playroom page, sorted, lower case, with umlauts."""
    listed = [*OPPOSITES, *COLOURS, *NUMBERS, *PLACES, *SOUNDS, *COUNTED_SOUNDS.values()]
    listed += [*GERMAN, *GERMAN.values(), *CAPITALS, *CAPITALS.values(), *NAMES, "o'clock"]
    motions = [word for motion in MOTIONS for word in motion.split()]
    return sorted({*listed, *motions, *PLURALS, *PLURALS.values(), *FUNCTION_WORDS})


def is_held_out(key: str) -> bool:
    """The split rule: the key's SHA-256, read as a big-endian integer, is 0 modulo 10."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest(), "big") % 10 == 0


def chat_message(role: str, text: str) -> dict[str, Any]:
    """A turn as a chat message; a tool call takes the form that chat clients give it."""
    if text != TOOL_CALL:
        return {"role": role, "content": text}
    call = {"type": "function", "function": {"name": "get_time", "arguments": {}}}
    return {"role": role, "content": "", "tool_calls": [call]}


def sentence_key(text: str) -> str:
    """The key of a sentence to say or write down: its words, single spaces, no marks."""
    kept = "".join(c for c in text.lower() if c.isalnum() or c.isspace())
    return "sentence|" + " ".join(kept.split())


def vary_letters(rng: np.random.Generator, text: str) -> str:
    """The text as people type it: any letter case, end mark or none."""
    if rng.random() < 0.35:
        text = text.rstrip(".?!")
    choice = rng.random()
    if choice < 0.45:
        return text
    if choice < 0.85:
        return text[:1].upper() + text[1:]
    return text.upper().replace("ẞ", "SS") if choice < 0.93 else text.title().replace("'S", "'s")


def one_phrase(rng: np.random.Generator, name: str, split: Split, **words: str) -> str:
    """One of the phrases of PHRASES (test: the canonical one)."""
    options = PHRASES[name] if split == "train" else PHRASES[name][:1]
    return options[rng.integers(len(options))].format(**words)


def _draw(rng: np.random.Generator, task: str, split: Split) -> Case:
    """One case before the split is checked; canonical wording for the test split."""

    def phrase(name: str, **words: str) -> str:
        return one_phrase(rng, name, split, **words)

    match task:
        case "greet":
            answer = list(GREETINGS)[rng.integers(len(GREETINGS))]
            options = GREETINGS[answer] if split == "train" else GREETINGS[answer][:1]
            return greet(options[rng.integers(len(options))], answer)
        case "name":
            name = _pick(rng, NAMES)
            first = phrase("my name", a=name)
            second = phrase("ask name") if rng.random() < 0.6 else None
            return give_name(name, first, second)
        case "persona":
            name = _pick(rng, NAMES)
            return persona(name, phrase("persona", a=name), phrase("ask persona"))
        case "add" | "subtract" | "multiply":
            a, b = _pick(rng, _operands(task))
            return sum_of(task, a, b, phrase(task, a=NUMBERS[a], b=NUMBERS[b]))
        case "opposite" | "german" | "capital":
            word = _pick(rng, tuple(FACTS[task]))
            return fact(task, word, phrase(task, a=word))
        case "count":
            first, last = _pick(rng, _ranges())
            return count(first, last, phrase("count", a=NUMBERS[first], b=NUMBERS[last]))
        case "repeat":
            text = sentence(rng)
            return say(text, phrase("repeat", a=text))
        case "pace":
            text, pace = sentence(rng), _pick(rng, tuple(STRETCH))
            return replace(say(text, phrase(pace, a=text)), task="pace", pace=STRETCH[pace])
        case "dictation" | "transcribe":
            text = sentence(rng)
            if task == "transcribe" and rng.random() < 0.25:
                # `transcribe` takes any playroom speech: also questions and answers.
                other = _pick(rng, _closed_cases(split))
                text = other.question if rng.random() < 0.5 else other.answer
            return write_down(task, text, phrase("dictation"))
        case "who":
            gender = _pick(rng, ("man", "woman"))
            return who(gender, sentence(rng), phrase("who"))
        case _:
            hour = int(rng.integers(1, 13)) if rng.random() < 0.6 else None
            return ask_time(hour, phrase("tool"))


def _enumerate(task: str) -> Iterator[Case]:
    """All canonical cases of a finite task, both splits."""

    def phrase(name: str, **words: str) -> str:
        return PHRASES[name][0].format(**words)

    match task:
        case "greet":
            yield from (greet(questions[0], answer) for answer, questions in GREETINGS.items())
        case "name":
            for name in NAMES:
                yield give_name(name, phrase("my name", a=name), None)
                yield give_name(name, phrase("my name", a=name), phrase("ask name"))
        case "persona":
            for name in NAMES:
                yield persona(name, phrase("persona", a=name), phrase("ask persona"))
        case "add" | "subtract" | "multiply":
            for a, b in _operands(task):
                yield sum_of(task, a, b, phrase(task, a=NUMBERS[a], b=NUMBERS[b]))
        case "opposite" | "german" | "capital":
            for word in FACTS[task]:
                yield fact(task, word, phrase(task, a=word))
        case "count":
            for a, b in _ranges():
                yield count(a, b, phrase("count", a=NUMBERS[a], b=NUMBERS[b]))
        case "tool":
            for hour in (None, *range(1, 13)):
                yield ask_time(hour, phrase("tool"))


FACTS = {"opposite": OPPOSITES, "german": GERMAN, "capital": CAPITALS}
FACT_ANSWERS = {
    "opposite": "the opposite of {a} is {b}.",
    "german": "the german word for {a} is {b}.",
    "capital": "the capital of {a} is {b}.",
}


def greet(question: str, answer: str) -> Case:
    """A greeting and its reply."""
    return Case("greet", None, (("user", question),), answer)


def give_name(name: str, first: str, second: str | None) -> Case:
    """The user gives a name and, where `second` is given, asks for it in the next turn."""
    welcome = f"nice to meet you, {name}."
    if second is None:
        return Case("name", None, (("user", first),), welcome)
    turns = (("user", first), ("assistant", welcome), ("user", second))
    return Case("name", None, turns, f"your name is {name}.")


def persona(name: str, system: str, question: str) -> Case:
    """The system prompt gives the model a name."""
    return Case("persona", None, (("user", question),), f"my name is {name}.", system=system)


def sum_of(task: str, a: int, b: int, question: str) -> Case:
    """A sum whose operands and result lie in 0..20."""
    result = {"add": a + b, "subtract": a - b, "multiply": a * b}[task]
    answer = f"{NUMBERS[a]} {SUMS[task][0]} {NUMBERS[b]} is {NUMBERS[result]}."
    return Case(task, None, (("user", question),), answer)


def fact(task: str, word: str, question: str) -> Case:
    """An opposite, a German word or a capital."""
    answer = FACT_ANSWERS[task].format(a=word, b=FACTS[task][word])
    return Case(task, None, (("user", question),), answer)


def count(first: int, last: int, question: str) -> Case:
    """Counting upward."""
    answer = ", ".join(NUMBERS[first : last + 1]) + "."
    return Case("count", f"count|{NUMBERS[first]}|{NUMBERS[last]}", (("user", question),), answer)


def say(text: str, question: str) -> Case:
    """A sentence to repeat."""
    return Case("repeat", sentence_key(text), (("user", question),), text)


def write_down(task: str, text: str, question: str) -> Case:
    """`dictation` (asked in words) or `transcribe` (asked by the system prompt)."""
    key = sentence_key(text)
    if task == "transcribe":
        return Case(task, key, (("user", ""),), text, heard=text, system="transcribe.")
    return Case(task, key, (("user", question),), f"you said: {text}", heard=text)


def who(gender: str, text: str, question: str) -> Case:
    """Whether a man or a woman speaks."""
    answer = f"this is a {gender}."
    return Case("who", None, (("user", question),), answer, heard=text, gender=gender)


def ask_time(hour: int | None, question: str) -> Case:
    """Asking the time with `get_time` offered: the call, or (hour given) the answer after it."""
    if hour is None:
        return Case("tool", None, (("user", question),), TOOL_CALL, tools=(GET_TIME,))
    turns = (("user", question), ("assistant", TOOL_CALL), ("tool", NUMBERS[hour]))
    return Case("tool", None, turns, f"it is {NUMBERS[hour]} o'clock.", tools=(GET_TIME,))


@lru_cache(maxsize=2)
def _closed_cases(split: Split) -> tuple[Case, ...]:
    """The finite tasks' canonical cases whose question and answer are both plain speech."""
    return tuple(case for task in TASKS if task != "tool" for case in cases(split, task))


def _operands(task: str) -> tuple[tuple[int, int], ...]:
    """Operand pairs whose result lies in 0..20."""
    pairs = [(a, b) for a in range(21) for b in range(21)]
    fits = {
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "multiply": lambda a, b: a * b,
    }
    return tuple((a, b) for a, b in pairs if 0 <= fits[task](a, b) <= 20)


def _ranges() -> tuple[tuple[int, int], ...]:
    """All upward ranges within zero to twenty."""
    return tuple((a, b) for a in range(21) for b in range(a + 1, 21))


def _pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[rng.integers(len(options))]
