"""Which replies the Talker practises: those that are asked for, and all others."""

import numpy as np
import pytest

from thinktalk.train.replies import ASKED_SHARE, Reply, shares


def reply(text: str, *, stretch: float = 1.0) -> Reply:
    return {"text": text, "stretch": stretch}, np.zeros(4, np.int64)


def test_replies_are_drawn_as_often_as_they_are_asked_for() -> None:
    replies = [reply("yes."), reply("yes."), reply("yes.", stretch=1.4), reply("no."), reply("so.")]
    found = shares(replies, {"yes.": ["?"] * 6, "no.": ["?"] * 2, "never said.": ["?"]})
    everywhere = (1 - ASKED_SHARE) / 5
    asked = ASKED_SHARE * np.array([3, 3, 0, 2, 0]) / 8  # two voices share the questions
    assert found == pytest.approx(asked + everywhere)


def test_without_questions_all_are_drawn_alike() -> None:
    assert shares([reply("a."), reply("b.")], {}) == pytest.approx([0.5, 0.5])
