"""What keeps a model from learning what is held out as what never happens."""

import re

import numpy as np
import pytest

from thinktalk.playroom import cases, senses
from thinktalk.playroom.cases import make
from thinktalk.playroom.talk import Case, Split

NO_PARTNER = {
    "colour": ("shape", r"the shape is (\w+)\."),
    "where": ("shape", r"the shape is (.+)\."),
    "how many": ("shape", r"there (?:is one shape|are \w+ shapes)\."),
    "motion": ("shape", r"the shape (.+)\."),
    "when": ("shape", r"the shape was (\w+)\."),
    "how often": ("sound", r"you hear (?:one sound|\w+ sounds)\."),
}


def draw(task: str, split: Split, count: int) -> list[Case]:
    return [senses.sample(np.random.default_rng(n), split=split, task=task) for n in range(count)]


@pytest.mark.parametrize("task", NO_PARTNER)
def test_train_cases_also_show_what_belongs_to_nothing(task: str) -> None:
    """So that a model does not learn which words never go together: those that are held out."""
    name, answer = NO_PARTNER[task]
    train, test = (draw(task, split, 200) for split in cases.SPLITS)
    nameless = [case for case in train if name in case.shown]
    assert 35 < len(nameless) < 110 and all(case.key is None for case in nameless)
    assert all(re.fullmatch(answer, case.answer) for case in nameless)
    assert all(name in case.question.lower() for case in nameless)
    assert all(name not in case.shown for case in test)
    assert all(case.key is not None for case in test)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("how many", r"i see (?!one)\w+ (\w+) \w+s\."),
        ("where", r"an? (\w+ \w+) is (?:on|at|in) the \w+\."),
        ("motion", r"an? (\w+ \w+) (?:moves|grows|shrinks|stays)( \w+)?\."),
    ],
)
def test_train_cases_also_ask_the_other_way_round(task: str, answer: str) -> None:
    """So that an answer names every colour with every shape, held-out ones too."""
    train, test = (draw(task, split, 400) for split in cases.SPLITS)
    found = [case for case in train if re.fullmatch(answer, case.answer)]
    assert 50 < len(found) < 120
    assert {case.key for case in found} <= {
        senses.key(task, words) for words in senses.shown("train", task)
    }
    assert {case.shown[:2] for case in found} & set(senses.shown("test", "shape"))
    assert not any(re.fullmatch(answer, case.answer) for case in test)


def test_sounds_of_several_kinds_are_counted_up_to_six() -> None:
    several = [case for case in draw("how often", "train", 200) if case.shown[0] == "sound"]
    assert {case.answer for case in several} == {"you hear one sound."} | {
        f"you hear {number} sounds." for number in ("two", "three", "four", "five", "six")
    }
    assert all("sounds" in case.question.lower() for case in several)


def test_one_kind_is_counted_among_others() -> None:
    """So that an answer names every kind with every number, held-out ones too."""
    found = [case for case in draw("how often", "train", 400) if len(case.shown) == 3]
    assert 120 < len(found) < 200
    for case in found:
        sound, number, other = case.shown
        assert case.key is None and sound != other
        assert sound in case.question.lower() and other not in case.question.lower()
        assert re.fullmatch(rf"you hear {number} {sound}s?\.", case.answer)
    assert {case.shown[:2] for case in found} & set(senses.shown("test", "how often"))
    assert all(len(case.shown) == 2 for case in draw("how often", "test", 50))


def test_train_cases_also_ask_for_the_order_of_two_of_three_sounds() -> None:
    pairs = set()
    for case in draw("order", "train", 400):
        asked = [s for s in case.shown if s in case.question.lower()]
        assert len(asked) == 2
        first = asked[0]
        assert case.answer == f"the {first} came first."
        if len(case.shown) == 3:
            assert case.key is None
            pairs.add(tuple(asked))
    assert pairs & set(senses.shown("test", "order"))
    example = make(seed=1, split="train", number=3, task="order")
    assert all(
        len(make(seed=1, split="test", number=n, task="order").case.shown) == 2 for n in range(5)
    )
    assert tuple(sound for _, sound in example.films[0].events) == example.case.shown
