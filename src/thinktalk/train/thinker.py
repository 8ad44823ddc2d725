"""The Thinker's task: typed and spoken questions to text, with a transcription loss on the ear."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.model.thinker import Thinker
from thinktalk.train.conversations import IGNORED, LETTERS, Dialogues, collate, spell
from thinktalk.train.trainer import to_device

SPOKEN_SHARE = 0.6
TOOL_BATCH_SHARE = 0.06  # their prompts are five times as long, so they have batches of their own
NUM_TEST_DIALOGUES = 64
TRANSCRIPTION_WEIGHT = 0.5
MASKED_FRAMES, MASKED_BINS = 12, 16  # largest masks of SpecAugment (Park et al. 2019)


class ThinkerTask:
    """Cross-entropy on the reply, and two CTC losses (Graves et al. 2006) on the audio tokens.

    The first spells letters through a head that exists for training only, which teaches the
    encoder where the words are. The second names text tokens through the Thinker's own embedding
    table, which draws the token of a spoken word to the embedding of the written one: what the
    decoder learns from typed questions then serves for spoken ones.
    """

    def __init__(self, thinker: Thinker, dialogues: Dialogues, test: Dialogues):
        width = thinker.config.text_config.hidden_size
        self.letters = nn.Linear(width, len(LETTERS) + 1)
        self.blank = nn.Linear(width, 1)
        self.module = nn.ModuleDict(
            {"thinker": thinker, "letters": self.letters, "blank": self.blank}
        )
        self.thinker = thinker
        self.dialogues, self.test = dialogues, test
        rows = dialogues.spoken.rows
        self.with_tools = [row for row in rows if row["case"]["tools"]]
        self.without_tools = [row for row in rows if not row["case"]["tools"]]
        thinker.visual.requires_grad_(False)  # this world has no pictures yet

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        """All spoken, or all typed and twice as many: neighbours in length, so little padding."""
        if rng.random() < TOOL_BATCH_SHARE:
            task, rows, size = "tool", self.with_tools, size // 4
        else:
            task, rows = None, self.without_tools
        if rows and rng.random() < SPOKEN_SHARE:
            chosen = rng.integers(len(rows), size=size)
            drawn = [self.dialogues.heard(rows[row], rng) for row in chosen]
        else:
            drawn = [self.dialogues.typed(rng, task=task) for _ in range(2 * size)]
        mels = [_masked(mel, rng) for d in drawn for mel in d.mels]
        return self._tensors(drawn, mels)

    def loss(self, batch: dict[str, Any], progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self.thinker.encode_audio(batch["mels"])
        labels = batch["labels"]
        learned = labels != IGNORED
        hidden = self._hidden(batch, tokens)
        logits = self.thinker.logits(hidden[learned])
        text = F.cross_entropy(logits, labels[learned])
        right = (logits.argmax(-1) == labels[learned]).float().mean()
        figures = {"text": text, "right": right}
        if tokens is None:
            return text, figures
        letters, words = self._transcription_losses(tokens, batch)
        figures |= {"letters": letters, "words": words}
        return text + TRANSCRIPTION_WEIGHT * (letters + words), figures

    def evaluate(self) -> dict[str, float]:
        """Teacher-forced: the share of held-out replies in which every token is right."""
        rng = np.random.default_rng(0)
        rows = self.test.spoken.rows[:NUM_TEST_DIALOGUES]
        spoken = [self.test.heard(row, rng) for row in rows]
        typed = [self.test.typed(rng) for _ in range(NUM_TEST_DIALOGUES)]
        figures = {}
        for name, drawn in (("spoken", spoken), ("typed", typed)):
            batch = self._tensors(drawn, [mel for d in drawn for mel in d.mels])
            batch = to_device(batch, self.thinker.lm_head.weight.device)
            hidden = self._hidden(batch, self.thinker.encode_audio(batch["mels"]))
            right = self.thinker.logits(hidden).argmax(-1) == batch["labels"]
            right |= batch["labels"] == IGNORED
            figures[name] = right.all(1).float().mean().item()
        return figures

    def _hidden(self, batch: dict[str, Any], tokens: Tensor | None) -> Tensor:
        ids = batch["ids"]
        embeddings = self.thinker.embed_prompt(ids, audio=tokens, images=None, videos=None)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        return self.thinker(embeddings, positions=positions)

    def _transcription_losses(self, tokens: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """CTC over letters and over text tokens; class 0 is the blank of both."""
        table = self.thinker.model.embed_tokens.weight
        words = F.linear(tokens, table) * table.shape[1] ** -0.5
        words = torch.cat((self.blank(tokens), words), dim=-1)
        losses = []
        for scores, name in ((self.letters(tokens), "letters"), (words, "words")):
            by_clip = scores.float().log_softmax(-1).split(batch["clip_tokens"].tolist())
            loss = F.ctc_loss(
                nn.utils.rnn.pad_sequence(list(by_clip)),
                batch[name],
                batch["clip_tokens"],
                batch[name + "_lengths"],
                zero_infinity=True,
            )
            losses.append(loss)
        return losses[0], losses[1]

    def _tensors(self, drawn: list[Any], mels: list[np.ndarray]) -> dict[str, Any]:
        transcripts = [text for d in drawn for text in d.transcripts]
        letters = [spell(text) for text in transcripts]
        words = [[token + 1 for token in self.dialogues.words(text)] for text in transcripts]
        audio_id = self.thinker.config.audio_token_index
        clip_tokens = [n for d in drawn for n in _runs(d.ids == audio_id)]
        return collate(drawn, pad_id=self.thinker.config.pad_token_id) | {
            "mels": [torch.from_numpy(mel) for mel in mels],
            "clip_tokens": torch.tensor(clip_tokens),
            "letters": torch.tensor([letter for clip in letters for letter in clip]),
            "letters_lengths": torch.tensor([len(clip) for clip in letters]),
            "words": torch.tensor([word for clip in words for word in clip]),
            "words_lengths": torch.tensor([len(clip) for clip in words]),
        }


def _runs(marks: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], marks.astype(np.int8), [0]))))
    return (edges[1::2] - edges[::2]).tolist()


def _masked(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mel with one random band of time and one of frequency silenced."""
    mel = mel.copy()
    for axis, largest in ((1, MASKED_FRAMES), (0, MASKED_BINS)):
        width = int(rng.integers(largest + 1))
        first = int(rng.integers(max(1, mel.shape[axis] - width)))
        place = (slice(None), slice(first, first + width)) if axis else slice(first, first + width)
        mel[place] = mel.min()
    return mel
