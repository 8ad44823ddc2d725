"""The Talker's rows of the playroom: replies of a packed corpus, behind questions to them."""

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinktalk.config import SpeechTokenizerConfig
from thinktalk.media.prompt import Prompt
from thinktalk.model.talker import Talker
from thinktalk.model.thinker import Thinker
from thinktalk.playroom import talk
from thinktalk.train.conversations import IGNORED, Dialogue, Dialogues
from thinktalk.train.examples import Example, Spoken
from thinktalk.train.packing import collate
from thinktalk.train.streams import Stream
from thinktalk.train.talker import TalkerTask

Reply = tuple[dict[str, Any], NDArray[np.int64]]  # a row of the corpus, its codec ids

ASKED_SHARE = 0.5  # of replies are drawn as often as the playroom asks for them, others all alike
OWN_QUESTION_SHARE = 0.7  # of replies that answer some question are heard behind that question
DEAF_SHARE = 0.25  # of replies are spoken from their words alone
NUM_TEST_REPLIES, TEST_BATCH = 48, 16
PACE_WORDS = {1.4: "slowly", 0.8: "quickly"}


class ReplyTask(TalkerTask):
    """The Talker's task with batches that are drawn from the playroom."""

    def __init__(
        self,
        talker: Talker,
        thinker: Thinker,
        dialogues: Dialogues,
        streams: list[Stream],
        ids: list[NDArray[np.int64]],
        *,
        voice_tokens: dict[str, int],
        codes: SpeechTokenizerConfig,
    ):
        self.dialogues, self.voice_tokens = dialogues, voice_tokens
        self.pad_id = thinker.config.pad_token_id
        self.questions = _questions(dialogues)
        self.train_replies, test = _replies(streams, ids)
        self.shares = shares(self.train_replies, self.questions)
        rng = np.random.default_rng(0)
        firsts = range(0, len(test), TEST_BATCH)
        super().__init__(
            talker,
            thinker,
            num_codes=codes.num_codes,
            levels=codes.fsq_levels,
            deaf=DEAF_SHARE,
            held_out=[self.collated(test[first : first + TEST_BATCH], rng) for first in firsts],
        )

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        # neighbours in length share a batch, so that little is padding
        pool = rng.choice(len(self.train_replies), size=8 * size, p=self.shares)
        pool = sorted(pool, key=lambda i: len(self.train_replies[i][1]))
        first = int(rng.integers(len(pool) - size + 1))
        return self.collated([self.train_replies[i] for i in pool[first : first + size]], rng)

    def collated(self, replies: list[Reply], rng: np.random.Generator) -> dict[str, Any]:
        examples = [self._example(row, ids, rng) for row, ids in replies]
        numbers = range(len(examples))
        return collate(examples, samples=numbers, pad_id=self.pad_id, packed=False)

    def _example(
        self, row: dict[str, Any], ids: NDArray[np.int64], rng: np.random.Generator
    ) -> Example:
        dialogue = self._dialogue(row, rng)
        count = len(dialogue.ids)
        said = Spoken(dialogue.prompt_length, count - 1, ids, self.voice_tokens[row["voice"]])
        return Example(
            Prompt(dialogue.ids, mels=dialogue.mels),
            np.full(count, IGNORED, np.int64),
            np.broadcast_to(np.arange(count), (3, count)),
            (said,),
        )

    def _dialogue(self, row: dict[str, Any], rng: np.random.Generator) -> Dialogue:
        """A conversation in which the reply is what the row says, at the row's pace."""
        text, pace = row["text"], PACE_WORDS.get(row["stretch"])
        questions = self.questions.get(text, [])
        if pace is None and questions and rng.random() < OWN_QUESTION_SHARE:
            question = questions[rng.integers(len(questions))]
            if isinstance(question, talk.Case):
                return self.dialogues.from_case(question, rng)
            return self.dialogues.heard(question, rng)
        phrases = talk.PHRASES[pace or "repeat"]
        asked = phrases[rng.integers(len(phrases))].format(a=text)
        return self.dialogues.from_case(talk.say(text, talk.vary_letters(rng, asked)), rng)


def _questions(dialogues: Dialogues) -> dict[str, list[Any]]:
    """Spoken and typed questions by the words of their reply."""
    questions = defaultdict(list)
    for row in dialogues.spoken.rows:
        if row["speech"] and row["pace"] == 1.0:
            questions[row["speech"]].append(row)
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        case = talk.sample(rng, split="train")
        if case.heard is None and case.speech and case.pace == 1.0:
            questions[case.speech].append(case)
    return questions


def _replies(
    streams: list[Stream], ids: list[NDArray[np.int64]]
) -> tuple[list[Reply], list[Reply]]:
    """The replies for training, and some at the end for testing."""
    train, test = [], []
    for stream, of_stream in zip(streams, ids, strict=True):
        for row in stream.rows:
            codes = of_stream[row["frame"] // 2 : (row["frame"] + row["frames"]) // 2]
            inside = row["frame"] + row["frames"] <= stream.train_frames
            (train if inside else test).append((row, codes))
    every = max(1, math.ceil(len(test) / NUM_TEST_REPLIES))
    return train, test[::every]


def shares(replies: list[Reply], questions: dict[str, list[Any]]) -> NDArray[np.float64]:
    """How often each reply is drawn; the sum is 1.

    Every reply is in the corpus once, but answers of few words in few forms are what is mostly
    asked for: drawn all alike, they would be one in twenty.
    """
    texts = [row["text"] if row["stretch"] == 1.0 else "" for row, _ in replies]
    copies = Counter(texts)
    asked = np.array([len(questions.get(text, [])) / copies[text] for text in texts])
    if not asked.any():
        return np.full(len(replies), 1 / len(replies))
    return ASKED_SHARE * asked / asked.sum() + (1 - ASKED_SHARE) / len(replies)
