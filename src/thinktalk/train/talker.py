"""The Talker's task: Thinker states and text of a reply to the codec ids of its speech.

Shapes: B rows, T text positions (prompt and reply), L Talker positions (prompt, two start rows, one
row for every codec id), C width of the Thinker.
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from thinktalk.config import SpeechTokenizerConfig
from thinktalk.model.talker import Talker, prompt_rows
from thinktalk.model.thinker import Thinker
from thinktalk.playroom import talk
from thinktalk.train.conversations import IGNORED, Dialogue, Dialogues, collate, grown, learned_rows
from thinktalk.train.omni import embedded, num_learned
from thinktalk.train.streams import Stream
from thinktalk.train.trainer import Task, to_device

RANDOM_IDS, NEAR_IDS = 0.06, 0.12  # shares of input ids replaced by any id, by a grid neighbour
SPELLING_WEIGHT = 0.3
OWN_QUESTION_SHARE = 0.7  # of replies that answer some question are heard behind that question
NUM_TEST_REPLIES = 48
PACE_WORDS = {1.4: "slowly", 0.8: "quickly"}


class TalkerTask(Task):
    """Cross-entropy on the next codec id, and on the text token that is being spoken.

    The second loss, through a head that exists for training only, makes the Talker keep track of
    its place in the text. Ids that no code uses are one class: see `spread_unused`.
    """

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
        spelling = nn.Linear(talker.config.hidden_size, thinker.config.text_config.vocab_size)
        self.module = nn.ModuleDict({"talker": talker, "spelling": spelling})
        self.companions = (thinker,)
        self.talker, self.thinker, self.spelling = talker, thinker, spelling
        self.dialogues, self.voice_tokens, self.codes = dialogues, voice_tokens, codes
        self.classes = codec_classes(talker, num_codes=codes.num_codes)
        self.class_sizes = torch.ones(len(self.classes))
        self.class_sizes[-1] = talker.config.vocab_size - len(self.classes) + 1
        self.train_replies, self.test_replies = _replies(streams, ids)
        self.questions = self._questions()

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        # neighbours in length share a batch, so that little is padding
        pool = rng.choice(len(self.train_replies), size=8 * size)
        pool = sorted(pool, key=lambda i: len(self.train_replies[i][1]))
        first = int(rng.integers(len(pool) - size + 1))
        chosen = [self.train_replies[i] for i in pool[first : first + size]]
        return self._tensors(chosen, rng, noisy=True)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        places, labels = learned_rows(batch["labels_codec"])
        hidden = self._hidden(batch).flatten(0, 1)[places]
        logits = self._class_logits(hidden)
        codec = F.cross_entropy(logits, labels, ignore_index=IGNORED)
        spoken = batch["spoken"].flatten()[places]
        spelled = F.cross_entropy(self.spelling(hidden).float(), spoken, ignore_index=IGNORED)
        right = (logits.argmax(-1) == labels)[labels != IGNORED].float().mean()
        figures = {"codec": codec, "spelling": spelled, "right": right}
        return codec + SPELLING_WEIGHT * spelled, figures

    def weight(self, batch: dict[str, Any]) -> float:
        return num_learned(batch["labels_codec"])

    def evaluate(self) -> dict[str, float]:
        rng = np.random.default_rng(0)
        figures: dict[str, list[float]] = defaultdict(list)
        for first in range(0, len(self.test_replies), 16):
            batch = self._tensors(self.test_replies[first : first + 16], rng, noisy=False)
            batch = to_device(batch, self.talker.codec_head.weight.device)
            for name, value in self.loss(batch)[1].items():
                figures[name].append(value.item())
        return {name: float(np.mean(values)) for name, values in figures.items()}

    def _hidden(self, batch: dict[str, Any]) -> Tensor:
        ids, thinker = batch["ids"], self.thinker
        with torch.no_grad():
            embeddings = embedded(thinker, batch)
            hidden = thinker(embeddings, positions=_counting(ids))
            media = ids == thinker.config.audio_token_index
            rows = prompt_rows(embeddings, hidden, media)
            special = thinker.embed(batch["special_ids"]).to(rows.dtype)
            rows = torch.cat((rows, special), dim=1)  # [B, T + 3, C]
            places = batch["row_places"]
            reply = rows.gather(1, places[..., None].expand(-1, -1, rows.shape[-1]))
        codec = self.talker.embed_codec(batch["codec_ids"])
        tracks = reply + codec * batch["has_codec"][..., None]
        return self.talker(tracks, positions=_counting(places))

    def _class_logits(self, hidden: Tensor) -> Tensor:
        classes = self.classes.to(hidden.device)
        logits = F.linear(hidden, self.talker.codec_head.weight[classes]).float()
        return logits + self.class_sizes.to(hidden.device).log()

    def _tensors(
        self, replies: list[tuple[dict, NDArray]], rng: np.random.Generator, *, noisy: bool
    ) -> dict[str, Any]:
        dialogues = [self._dialogue(row, rng) for row, _ in replies]
        batch: dict[str, Any] = collate(dialogues, pad_id=self.thinker.config.pad_token_id)
        width = batch["ids"].shape[1]
        lengths = (
            d.prompt_length + 2 + len(ids) for d, (_, ids) in zip(dialogues, replies, strict=True)
        )
        length = grown(max(lengths))
        shape = (len(replies), length)
        places, codec_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        has_codec = np.zeros(shape, np.float32)
        labels, spoken = np.full(shape, IGNORED), np.full(shape, IGNORED)
        config = self.talker.config
        voice, end, pad = width, width + 1, width + 2
        for b, (dialogue, (row, ids)) in enumerate(zip(dialogues, replies, strict=True)):
            prompt, num_ids = dialogue.prompt_length, len(ids)
            num_reply = len(dialogue.ids) - prompt - 1  # the stop id has no row
            text = [*range(prompt, prompt + num_reply), end]
            text += [pad] * max(0, num_ids + 1 - len(text))
            places[b, : prompt + 2 + num_ids] = [*range(prompt), voice, *text[: num_ids + 1]]
            heard = self._noisy(ids, rng) if noisy else ids
            start = (config.tts_codec_pad_token_id, config.tts_codec_start_token_id)
            codec_ids[b, prompt : prompt + 2 + num_ids] = [*start, *heard]
            has_codec[b, prompt : prompt + 2 + num_ids] = 1
            stop = self.codes.num_codes + config.stop_ids.index(config.tts_codec_end_token_id)
            labels[b, prompt + 1 : prompt + 2 + num_ids] = [*ids, stop]
            spoken[b, prompt + 1 : prompt + 1 + num_ids] = self._spoken(row, num_ids)
        special = [
            [
                self.voice_tokens[row["voice"]],
                config.tts_text_end_token_id,
                config.tts_text_pad_token_id,
            ]
            for row, _ in replies
        ]
        return batch | {
            "mels": [torch.from_numpy(mel) for d in dialogues for mel in d.mels],
            "special_ids": torch.tensor(special),
            "row_places": torch.from_numpy(places),
            "codec_ids": torch.from_numpy(codec_ids),
            "has_codec": torch.from_numpy(has_codec),
            "labels_codec": torch.from_numpy(labels.astype(np.int64)),
            "spoken": torch.from_numpy(spoken.astype(np.int64)),
        }

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

    def _questions(self) -> dict[str, list[Any]]:
        """Spoken and typed questions by the words of their reply."""
        questions = defaultdict(list)
        for row in self.dialogues.spoken.rows:
            if row["speech"] and row["pace"] == 1.0:
                questions[row["speech"]].append(row)
        rng = np.random.default_rng(0)
        for _ in range(20_000):
            case = talk.sample(rng, split="train")
            if case.heard is None and case.speech and case.pace == 1.0:
                questions[case.speech].append(case)
        return questions

    def _spoken(self, row: dict[str, Any], num_ids: int) -> NDArray[np.int64]:
        """The first text token of the word that sounds at every codec id, IGNORED in pauses."""
        tokens = np.full(num_ids, IGNORED)
        words = row["text"].split()
        for index, start_s, end_s in row["words"]:
            first = self.dialogues.tokenizer.encode((" " if index else "") + words[index])[0]
            tokens[round(start_s * 50) : round(end_s * 50)] = first
        return tokens

    def _noisy(self, ids: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Ids as a sampled Talker would have heard itself: some wrong, some off by one step."""
        levels = np.array(self.codes.fsq_levels)
        places = np.concatenate(([1], levels[:-1])).cumprod()
        digits = ids[:, None] // places % levels
        axis = rng.integers(len(levels), size=len(ids))
        step = rng.choice((-1, 1), size=len(ids))
        rows = np.arange(len(ids))
        digits[rows, axis] = (digits[rows, axis] + step).clip(0, levels[axis] - 1)
        kind = rng.random(len(ids))
        near = kind < NEAR_IDS
        wrong = (kind >= NEAR_IDS) & (kind < NEAR_IDS + RANDOM_IDS)
        noisy = np.where(near, (digits * places).sum(1), ids)
        return np.where(wrong, rng.integers(self.codes.num_codes, size=len(ids)), noisy)


def codec_classes(talker: Talker, *, num_codes: int) -> Tensor:
    """The ids that the Talker tells apart: all codes, the stop ids, one for all unused ids."""
    return torch.tensor([*range(num_codes), *talker.config.stop_ids, num_codes])


@torch.no_grad()
def spread_unused(talker: Talker, *, num_codes: int) -> None:
    """Gives every id that no code uses the weights of the class that stands for all of them.

    Trained as one class of that many equal members, so the full softmax is what was trained.
    """
    weight = talker.codec_head.weight
    unused = torch.ones(len(weight), dtype=torch.bool)
    unused[codec_classes(talker, num_codes=num_codes)[:-1]] = False
    weight[unused] = weight[num_codes].clone()


def _replies(
    streams: list[Stream], ids: list[NDArray[np.int64]]
) -> tuple[list[tuple[dict, NDArray]], list[tuple[dict, NDArray]]]:
    """(row, codec ids) of the replies for training, and of some at the end for testing."""
    train, test = [], []
    for stream, of_stream in zip(streams, ids, strict=True):
        for row in stream.rows:
            codes = of_stream[row["frame"] // 2 : (row["frame"] + row["frames"]) // 2]
            inside = row["frame"] + row["frames"] <= stream.train_frames
            (train if inside else test).append((row, codes))
    every = max(1, math.ceil(len(test) / NUM_TEST_REPLIES))
    return train, test[::every]


def _counting(like: Tensor) -> Tensor:
    """Positions 0, 1, 2, ... on all axes [3,B,L]: right for text and sound without pictures."""
    return torch.arange(like.shape[1], device=like.device).expand(3, *like.shape[:2])
