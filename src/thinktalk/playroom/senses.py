"""The seeing and hearing part of the playroom: questions about pictures, sounds and films.

As in talk.py, a case tells *what* is shown and asked: `Case.shown` holds the words of its key (or
the number of a handwritten digit, the printed word, the name of the sound). pictures are drawn by
scenes.py and writing.py, sounds by sounds.py, films by films.py; cases.py puts all together.
"""

from dataclasses import replace
from functools import lru_cache
from itertools import permutations, product

import numpy as np

from thinktalk.playroom import talk, writing
from thinktalk.playroom.talk import Case, Split, is_held_out, one_phrase, vary_letters
from thinktalk.playroom.words import (
    COLOURS,
    COUNTED_SOUNDS,
    MOTIONS,
    NUMBERS,
    PLACES,
    PLURALS,
    SHAPES,
    SOUNDS,
    WHERE,
    with_articles,
)

# Shares of the training mixture, and what stands before the question.
TASK_WEIGHTS = {
    "shape": 4, "colour": 4, "how many": 8, "where": 5, "digit": 6, "read": 8, "sound": 5,
    "how often": 7, "motion": 6, "when": 10, "order": 7, "look and talk": 6,
}  # fmt: skip
TASKS = tuple(TASK_WEIGHTS)
MEDIUM = {
    "sound": "audio", "how often": "audio", "motion": "video", "when": "video", "order": "video",
} | dict.fromkeys(
    ("shape", "colour", "how many", "where", "digit", "read", "look and talk"), "image"
)  # fmt: skip
MOST_SHAPES, EVENTS = 9, NUMBERS[1:7]
# What is held out are pairs and triples, and a model learns which words never go together: of blue
# things it says anything but star. So some train cases ask the other way round ("what is on the
# left?"), whose answers name every colour with every shape; and where the answer does not name the
# shape, some show what has no partner: shapes without a name, several sounds; of several sounds
# some are asked for one.
BACKWARDS_SHARE = 0.3
ANY_SHAPE, ANY_SOUND, NO_PARTNER_SHARE = "shape", "sound", 0.4
# With 0.4 a model counted 92 % of trained rows of sounds and hardly a held-out one of three to six.
NO_PARTNER_SHARES = {"how often": 0.85}
FOLLOW_UPS = {"its colour": "it is {colour}.", "its shape": "it is {shape}."}


def sample(rng: np.random.Generator, *, split: Split, task: str | None = None) -> Case:
    """One case of a split; of a task drawn by TASK_WEIGHTS (test: evenly) unless one is named.

    Raises ValueError for an unknown task.
    """
    if task is None:
        weights = np.array([TASK_WEIGHTS[t] if split == "train" else 1.0 for t in TASKS])
        task = str(rng.choice(TASKS, p=weights / weights.sum()))
    if task not in TASK_WEIGHTS:
        raise ValueError(f"unknown playroom task {task!r}: choose one of {', '.join(TASKS)}")
    options = shown(split, task)
    without = NO_PARTNER_SHARES.get(task, NO_PARTNER_SHARE)
    if split == "train" and task in _NO_PARTNER and rng.random() < without:
        options = _NO_PARTNER[task]
    words = options[rng.integers(len(options))]
    if split == "test":
        return _ask(rng, task, words, split)
    named = ANY_SHAPE not in words
    if named and task in BACKWARDS and rng.random() < BACKWARDS_SHARE:
        case = _ask_backwards(rng, task, words)
    else:
        case = _ask(rng, task, words, split)
    turns = tuple((r, vary_letters(rng, t) if r == "user" else t) for r, t in case.turns)
    return replace(case, turns=turns)


@lru_cache(maxsize=64)
def shown(split: Split, task: str) -> tuple[tuple[str, ...], ...]:
    """Everything that the cases of a task may show in a split."""
    if task == "digit":
        return tuple((str(number),) for number in writing.digit_numbers(split))
    if task == "read":
        return tuple((word,) for word in talk.vocabulary())
    if task == "sound":
        return tuple((sound,) for sound in SOUNDS)
    every = _KEYED[task]
    return tuple(e for e in every if is_held_out(key(task, e) or "") == (split == "test"))


def key(task: str, shown: tuple[str, ...]) -> str | None:
    """The key of the split rule; None for tasks whose facts stand in both splits."""
    if shown in _NO_PARTNER.get(task, ()):
        return None
    if task in ("shape", "colour", "look and talk"):
        task = "picture"
    return "|".join((task, *shown)) if task not in ("digit", "read", "sound") else None


Lists = tuple[tuple[str, ...], ...]
_PICTURE: Lists = (COLOURS, SHAPES)
_NAMED: dict[str, Lists] = {
    "shape": _PICTURE,
    "colour": _PICTURE,
    "look and talk": _PICTURE,
    "how many": (*_PICTURE, NUMBERS[1 : MOST_SHAPES + 1]),
    "where": (*_PICTURE, PLACES),
    "motion": (*_PICTURE, MOTIONS),
    "how often": (tuple(COUNTED_SOUNDS), EVENTS),
    "when": (SHAPES, SOUNDS, COLOURS),
}
_KEYED: dict[str, Lists] = {task: tuple(product(*lists)) for task, lists in _NAMED.items()}
_KEYED["order"] = tuple(permutations(SOUNDS, 2))
_WITHOUT = {  # what stands for the words that have partners
    SHAPES: (ANY_SHAPE,),
    tuple(COUNTED_SOUNDS): (ANY_SOUND,),
}
_NO_PARTNER: dict[str, Lists] = {
    task: tuple(product(*(_WITHOUT.get(words, words) for words in lists)))
    for task, lists in _NAMED.items()
    if task not in ("shape", "look and talk")
}
_NO_PARTNER["order"] = tuple(permutations(SOUNDS, 3))
_AMONG = tuple(  # so many of the first, and of another
    (sound, number, other)
    for (sound, other), number in product(permutations(COUNTED_SOUNDS, 2), EVENTS)
)
_ANY = _NO_PARTNER["how often"]
_NO_PARTNER["how often"] = _AMONG + _ANY * (len(_AMONG) // len(_ANY))  # one as often as the other


def _ask(rng: np.random.Generator, task: str, shown: tuple[str, ...], split: Split) -> Case:
    """The question about what is shown, in one of its phrases (test: the canonical one)."""

    def phrase(name: str, **words: str) -> str:
        return one_phrase(rng, name, split, **words)

    match task, shown:
        case "shape" | "look and talk", (colour, shape):
            question, answer = phrase("shape"), seen(colour, shape)
        case "colour", (colour, shape):
            question, answer = phrase("colour", a=shape), f"the {shape} is {colour}."
        case "how many", (_, shape, number):
            named = f"is one {shape}" if number == "one" else f"are {number} {plural(shape)}"
            question, answer = phrase("how many", a=plural(shape)), f"there {named}."
        case "where", (_, shape, place):
            question, answer = phrase("where", a=shape), f"the {shape} is {WHERE[place]}."
        case "digit", (number,):
            digit = NUMBERS[writing.digit_of(int(number))]
            question, answer = phrase("digit"), f"this is the digit {digit}."
        case "read", (word,):
            question, answer = phrase("read"), f"it says {word}."
        case "sound", (sound,):
            question, answer = phrase("sound"), f"this is {'' if sound == 'rain' else 'a '}{sound}."
        case "how often", (sound, number, *_):
            several = f"{ANY_SOUND}s" if sound == ANY_SOUND else COUNTED_SOUNDS[sound]
            named = sound if number == "one" else several
            question = phrase("how often", a=several)
            answer = f"you hear {number} {named}."
        case "motion", (_, shape, motion):
            question, answer = phrase("motion", a=shape), f"the {shape} {motion}."
        case "when", (shape, sound, colour):
            rang = "rang" if sound == "bell" else "sounded"
            question = phrase("when", a=shape, b=sound, c=rang)
            answer = f"the {shape} was {colour}."
        case "order", sounds:
            asked_about = list(sounds)
            if len(asked_about) > 2:
                asked_about.pop(int(rng.integers(len(asked_about))))
            first, second = asked_about
            a, b = (first, second) if rng.random() < 0.5 else (second, first)
            question, answer = phrase("order", a=a, b=b), f"the {first} came first."
        case _:
            raise AssertionError((task, shown))
    asked = Case(task, key(task, shown), (("user", question),), answer, shown=shown)
    return _follow_up(rng, asked, split) if task == "look and talk" else asked


BACKWARDS = {  # (phrases of the question, answer)
    "how many": ("shape", "i see {rest} {colour} {shapes}."),
    "where": ("what there", "a {colour} {shape} is {rest}."),
    "motion": ("what so", "a {colour} {shape} {rest}."),
}


def _ask_backwards(rng: np.random.Generator, task: str, shown: tuple[str, ...]) -> Case:
    """The train question whose answer is what the usual one tells; one shape is asked for as
    usual, for what one sees then is a case of another key."""
    colour, shape, rest = shown
    if task == "how many" and rest == NUMBERS[1]:
        return _ask(rng, task, shown, "train")
    rest = WHERE.get(rest, rest)
    phrases, answer = BACKWARDS[task]
    question = one_phrase(rng, phrases, "train", a=rest)
    answer = answer.format(colour=colour, shape=shape, shapes=plural(shape), rest=rest)
    answer = " ".join(with_articles(answer.split()))
    return Case(task, key(task, shown), (("user", question),), answer, shown=shown)


def _follow_up(rng: np.random.Generator, case: Case, split: Split) -> Case:
    """The case with a second question about the same picture."""
    about = "its colour" if split == "test" or rng.random() < 0.7 else "its shape"
    question = one_phrase(rng, about, split)
    colour, shape = case.shown
    answer = with_articles(FOLLOW_UPS[about].format(colour=colour, shape=f"a {shape}").split())
    turns = (*case.turns, ("assistant", case.answer), ("user", question))
    return replace(case, turns=turns, answer=" ".join(answer))


def plural(shape: str) -> str:
    """Of a shape, or of "shape"."""
    return PLURALS.get(shape, f"{shape}s")


def seen(colour: str, shape: str) -> str:
    """What one sees where one coloured shape is."""
    return " ".join(with_articles(f"i see a {colour} {shape}.".split()))
