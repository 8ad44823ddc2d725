"""Codec ids of speech in, the letters that are said out: a loss for the tokenizer, and a stage.

The tokenizer's stage reads its own codes, so that they keep what tells words apart. A reader that
is trained afterwards on the finished codes judges replies (ears.py).
Shapes: B clips of N codes, L quantised dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from thinktalk.config import SpeechTokenizerConfig
from thinktalk.eval.metrics import normalise
from thinktalk.model.speech_tokenizer import ConvNeXtBlock, SpeechTokenizer
from thinktalk.train.streams import Stream
from thinktalk.train.trainer import Task, to_device

LONGEST_FRAMES = 1000  # of a clip that is read
NUM_TEST_CLIPS = 32
READER_FILE = "code_reader.safetensors"
READER_LAYERS, READER_KERNEL = 4, 9  # a letter is judged by the 0.7 s around it

Clip = tuple[int, dict[str, Any]]  # which stream, and its row


class Reader(nn.Module):
    """Codes of a clip -> its letters, by CTC (Graves et al. 2006): bytes of UTF-8 in lower case, so
    any language has them. Class 0 is the blank."""

    def __init__(
        self, config: SpeechTokenizerConfig, *, layers: int = 2, kernel: int | None = None
    ):
        super().__init__()
        width = config.hidden_size
        self.first = nn.Linear(len(config.fsq_levels), width)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, kernel=kernel or config.kernel_size) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 1 + 256)

    def forward(self, quantised: Tensor) -> Tensor:
        """Grid points [B,N,L] -> scores [B,N,257]."""
        x = self.first(quantised).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x.transpose(1, 2))).float()

    def loss(self, quantised: Tensor, batch: dict[str, Any]) -> Tensor:
        """The mean over letters."""
        return self.losses(quantised, batch).sum() / len(batch["letters"])

    def losses(self, quantised: Tensor, batch: dict[str, Any]) -> Tensor:
        """-log of the probability of each clip's letters: [B]."""
        return letter_losses(self(quantised), batch)


def letter_losses(scores: Tensor, batch: dict[str, Any]) -> Tensor:
    """Scores [B,N,257] of a reader -> -log of the probability of each clip's letters: [B].

    batch: letters, num_letters [B], num_codes [B], as reading_batch gives them.
    """
    return F.ctc_loss(
        scores.log_softmax(-1).transpose(0, 1),
        batch["letters"],
        batch["num_codes"].cpu(),
        batch["num_letters"].cpu(),
        reduction="none",
        zero_infinity=True,
    )


class ReaderTask(Task):
    """A reader of finished codes, trained on clips whose words are known."""

    def __init__(
        self, tokenizer: SpeechTokenizer, streams: list[Stream], ids: list[NDArray[np.int64]]
    ):
        self.tokenizer, self.ids = tokenizer, ids
        self.reader = self.module = new_reader(tokenizer.config)
        self.clips, self.test_clips = clips_to_read(streams)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        return self._coded(neighbours(rng, self.clips, size))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        letters = self.reader.loss(batch["quantised"], batch)
        return letters, {"letters": letters}

    def weight(self, batch: dict[str, Any]) -> float:
        return len(batch["letters"])

    def evaluate(self) -> dict[str, float]:
        if not self.test_clips:
            return {}
        every = -(-len(self.test_clips) // NUM_TEST_CLIPS)
        batch = to_device(
            self._coded(self.test_clips[::every]), next(self.module.parameters()).device
        )
        return {"letters": self.loss(batch)[0].item()}

    def _coded(self, clips: list[Clip]) -> dict[str, Any]:
        per_code = self.tokenizer.config.frames_per_code
        codes = [
            self.ids[s][row["frame"] // per_code : (row["frame"] + row["frames"]) // per_code]
            for s, row in clips
        ]
        return reading_batch(self.tokenizer, codes, [row["text"] for _, row in clips])


def new_reader(config: SpeechTokenizerConfig) -> Reader:
    """As the stage `reader` trains it."""
    return Reader(config, layers=READER_LAYERS, kernel=READER_KERNEL)


def reading_batch(
    tokenizer: SpeechTokenizer, codes: Sequence[NDArray[np.int64]], texts: Sequence[str]
) -> dict[str, Any]:
    """What a reader's losses take: quantised [B,N,L], padded behind, and the letters of the texts,
    behind one another."""
    padded = np.zeros((len(codes), max(1, *map(len, codes))), np.int64)
    for row, ids in zip(padded, codes, strict=True):
        row[: len(ids)] = ids
    letters = [spelled(text) for text in texts]
    return {
        "quantised": tokenizer.grid(torch.from_numpy(padded)),
        "letters": torch.tensor([letter for text in letters for letter in text]),
        "num_letters": torch.tensor([len(text) for text in letters]),
        "num_codes": torch.tensor([len(ids) for ids in codes]),
    }


def clips_to_read(streams: list[Stream]) -> tuple[list[Clip], list[Clip]]:
    """Clips that can be read, for training and for tests, the shortest first."""
    found: tuple[list[Clip], ...] = ([], [])
    for number, stream in enumerate(streams):
        for row in stream.rows:
            if row["frames"] <= LONGEST_FRAMES and spelled(row["text"]):
                inside = row["frame"] + row["frames"] <= stream.train_frames
                found[not inside].append((number, row))
    if not found[0]:
        raise ValueError(
            f"no recording with a text is at most {LONGEST_FRAMES // 100} s long; cut them, or "
            "train without reading (reads=false)"
        )
    train, test = (sorted(clips, key=lambda clip: clip[1]["frames"]) for clips in found)
    return train, test


def neighbours(rng: np.random.Generator, clips: list[Clip], size: int) -> list[Clip]:
    """Clips that share a batch: of nearly one length, so that little is padding. clips: sorted."""
    pool = np.sort(rng.integers(len(clips), size=4 * size))
    first = int(rng.integers(len(pool) - size + 1))
    return [clips[i] for i in pool[first : first + size]]


def spelled(text: str) -> list[int]:
    """What is said as classes of the reader: marks and capitals cannot be heard."""
    return [byte + 1 for byte in normalise(text).encode()]


def save_reader(reader: Reader, folder: Path) -> None:
    """Beside the speech encoder whose codes it reads."""
    tensors = {name: weight.detach().contiguous() for name, weight in reader.state_dict().items()}
    save_file(tensors, folder / READER_FILE)
