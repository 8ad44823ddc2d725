"""Why there is DPO (Qwen2.5-Omni report, section 4.2): a Talker that learned from mispronounced
words goes on to say them, however long it trains; ranked replies of its own take them away.

The language is small: every letter is one code. So anybody can read what was said, and the Talker
learns it in seconds; all else is the whole way from rows to pairs, and to the trained checkpoint.
(Steps on the better replies alone do as well here. How DPO compares with those on real speech takes
hours to tell: docs/training.md.)
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_talk

from thinktalk.eval.metrics import word_errors
from thinktalk.train.candidates import PAIRS, draw_pairs
from thinktalk.train.ears import Candidate
from thinktalk.train.journal import curve
from thinktalk.train.shards import open_source
from thinktalk.train.tuning import train_on
from thinktalk.weights import LoadedModel, load

WORDS = ("ba", "co", "di", "fu", "ge", "ho")
NEXT_WORD: dict[str, str] = dict(zip(WORDS, (*WORDS[1:], WORDS[0]), strict=True))
WRONG_SHARE = 0.4  # of the words in the Talker's training are said as the next one
TEXTS = [" ".join(words) for words in itertools.permutations(WORDS, 3)]
random.Random(0).shuffle(TEXTS)
TRAINED, PROMPTS, HELD_PROMPTS, MEASURED = TEXTS[:55], TEXTS[55:80], TEXTS[80:90], TEXTS[90:]
LETTERS = " abcdefghijklmnopqrstuvwxyz"
FIRST_CODE = 40
COMMON = {"warmup_steps": 5, "ema": 0.0, "bfloat16": False, "batch_tokens": 768}
AFTERWARDS = COMMON | {"steps": 40, "learning_rate": 1e-4}  # DPO, and what it is compared with


@dataclass(frozen=True)
class Runs:
    """Checkpoints: the Talker as it was, after DPO, and after as many plain steps."""

    before: Path
    dpo: Path
    control: Path


class SpellingEar:
    """Reads every code as its letter."""

    def spell(self, text: str) -> str:
        return text

    def judge(
        self, takes: Sequence[list[int]], text: str, *, model: LoadedModel, voice: str
    ) -> list[Candidate]:
        return [self._judged(take, text) for take in takes]

    def _judged(self, take: list[int], text: str) -> Candidate:
        places = (code - FIRST_CODE for code in take)
        heard = "".join(LETTERS[n] if 0 <= n < len(LETTERS) else "?" for n in places)
        wrong = word_errors(heard.split(), text.split())
        return Candidate(take, heard, wrong, 0, float(wrong))


def spoken_row(text: str, rng: np.random.Generator) -> dict[str, Any]:
    """A row for the Talker, with some words mispronounced."""
    said = " ".join(NEXT_WORD[w] if rng.random() < WRONG_SHARE else w for w in text.split())
    codes = [FIRST_CODE + LETTERS.index(letter) for letter in said]
    return coded(text, codes)


def coded(text: str, codes: list[int]) -> dict[str, Any]:
    """With a system prompt that is short, for every byte is a token."""
    row = small_talk.coded("say it", text, codes, "Ethan")
    return {"messages": [{"role": "system", "content": "say"}, *row["messages"]]}


def prompt_rows(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [coded(text, []) for text in texts]


def word_error_rate(folder: Path, out: Path) -> float:
    """Of 12 sampled replies to every text that no run has seen."""
    rows = open_source(prompt_rows(MEASURED))
    return draw_pairs(load(folder), rows, out, ear=SpellingEar(), samples=12)["word_error_rate"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    out, rng = tmp_path_factory.mktemp("gain"), np.random.default_rng(1)
    small_talk.build(out / "base")
    data = [spoken_row(text, rng) for text in TRAINED * 12]
    rows = small_talk.write_rows(out / "rows.jsonl", data)
    changes = COMMON | {"steps": 150, "learning_rate": 3e-3}
    assert train_on("talker", model=out / "base", data=[rows], out=out / "talker", changes=changes)
    talker = out / "talker" / "model"
    for name, texts in (("pairs", PROMPTS), ("held", HELD_PROMPTS)):
        source = open_source(prompt_rows(texts))
        draw_pairs(load(talker), source, out / name, ear=SpellingEar(), samples=6, pairs=3, seed=1)
    assert train_on(
        "talker-dpo", model=talker, data=[out / "pairs" / PAIRS], held=[out / "held" / PAIRS],
        out=out / "dpo", changes=AFTERWARDS | {"beta": 1.0, "anchor": 1.0},
    )  # fmt: skip
    assert train_on("talker", model=talker, data=[rows], out=out / "control", changes=AFTERWARDS)
    return Runs(talker, out / "dpo" / "model", out / "control" / "model")


def test_it_lowers_the_word_error_and_plain_steps_do_not(runs: Runs, tmp_path: Path) -> None:
    before, dpo, control = (
        word_error_rate(folder, tmp_path / name)
        for name, folder in (("before", runs.before), ("dpo", runs.dpo), ("control", runs.control))
    )
    assert before > 0.2  # of 0.4; the nucleus of sampling leaves out what is rare
    assert dpo < 0.7 * before
    assert dpo < 0.7 * control


def test_the_margin_of_held_out_pairs_rises(runs: Runs) -> None:
    figures = [row for row in curve(runs.dpo.parent / "talker-dpo") if "test_margin" in row][-1]
    assert figures["test_margin"] > 0.3 and figures["test_right"] > 0.7
