"""The first stage of hearing: the audio encoder alone learns phones, words as text spells them, and
the names of sounds, one for every time that a sound is heard.

The text side stays frozen, as in the first stage of the Qwen2.5-Omni report. A recording costs a
fraction of what it costs with the decoder behind it, so the ear hears many before it must serve.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from thinktalk.media.mel import EAR_BINS, log_mel
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.model.audio import num_tokens, split_windows, up_to
from thinktalk.model.thinker import Thinker
from thinktalk.playroom import cases, senses, sounds, speech
from thinktalk.playroom.dataset import Corpus, open_corpus
from thinktalk.playroom.sounds import Samples
from thinktalk.playroom.words import NUMBERS, SOUNDS, to_ascii
from thinktalk.train.losses import side_by_side
from thinktalk.train.trainer import Task, to_device

Mel = NDArray[np.float32]  # [128,F]

PHONES: tuple[str, ...] = tuple(
    "aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw"
    " v w y z zh".split()
)
MARKS = ".,:?!"
MASKED_FRAMES, MASKED_BINS = 12, 16  # largest masks of SpecAugment (Park et al. 2019)
TEST_CLIPS = 64
# Sounds are drawn anew for every batch. A decoder that is to count them, or to tell which came
# first, finds each where it is; left to itself it had not begun to count after hours.
SOUND_SHARE = 0.3
ONE_SHARE, OTHERS_SHARE = 0.15, 0.4  # of these: one sound; three to six of several kinds
MOST_KINDS = 3


class Recordings:
    """All clips of a corpus of questions with their log-mels, computed once."""

    def __init__(self, folder: Path):
        corpus = open_corpus(folder)
        self.clips = [clip for row in corpus.rows for clip in row["clips"]]
        frames = np.array([-(-clip["samples"] // 160) for clip in self.clips])
        self.starts = np.concatenate(([0], frames.cumsum()))
        cached = folder / "log_mel.npy"
        if not cached.exists():
            _write_mels(cached, corpus, self.clips, int(self.starts[-1]))
        self.mels = np.load(cached, mmap_mode="r")

    def mel(self, index: int) -> Mel:
        """float32 [128,F] of a clip."""
        return self.mels[self.starts[index] : self.starts[index + 1]].T.astype(np.float32)


class AlignTask(Task):
    """Two CTC losses (Graves et al. 2006) on the audio tokens: over phones, and over text tokens.

    The scores of text tokens are products with the Thinker's frozen embeddings, which draws the
    token of a spoken word to the embedding of the written one. The heads of the phones and of the
    blank exist for training only.
    """

    def __init__(
        self, thinker: Thinker, tokenizer: Tokenizer, recordings: Recordings, test: Recordings
    ):
        self.transcriber = Transcriber(thinker, tokenizer)
        thinker.requires_grad_(False)
        thinker.audio_tower.requires_grad_(True)
        self.module = nn.ModuleDict({"thinker": thinker, "transcriber": self.transcriber.heads})
        self.thinker, self.recordings, self.test = thinker, recordings, test

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        num_sounds = int(rng.binomial(size, SOUND_SHARE))
        chosen = rng.integers(len(self.recordings.clips), size=size - num_sounds)
        mels = [masked(self.recordings.mel(i), rng) for i in chosen]
        texts = [self.recordings.clips[i]["text"] for i in chosen]
        heard = [_row_of_sounds(rng) for _ in range(num_sounds)]
        mels += [_mel(samples) for _, samples in heard]  # a mask would hide a whole beep
        return self._tensors(mels, texts, [names for names, _ in heard])

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, counts = self._tokens(batch)
        figures = self.transcriber.losses(tokens, counts, batch)
        return figures["phones"] + figures["words"], figures

    def weight(self, batch: dict[str, Any]) -> float:
        return len(batch["clip_tokens"])

    def evaluate(self) -> dict[str, float]:
        """The losses on held-out recordings; how many of them are transcribed without fault, and
        how many of held-out rows of sounds."""
        clips, rng = self.test.clips[:TEST_CLIPS], np.random.default_rng(0)
        batch = self._tensors(
            [self.test.mel(i) for i in range(len(clips))], [clip["text"] for clip in clips], []
        )
        losses, right = self._measured(batch)
        asked = [senses.sample(rng, split="test", task="how often") for _ in range(TEST_CLIPS)]
        mels = [_mel(cases.recording(rng, case)) for case in asked]
        names = [cases.counted(rng, case) for case in asked]
        counted = self._measured(self._tensors(mels, [], names))[1]
        return losses | {"right": right, "counted": counted}

    def _measured(self, batch: dict[str, Any]) -> tuple[dict[str, float], float]:
        """The losses, and the share of clips without fault."""
        tokens, counts = self._tokens(to_device(batch, self.thinker.lm_head.weight.device))
        figures = self.transcriber.losses(tokens, counts, batch)
        heard = self.transcriber.transcribe(tokens, counts)
        wanted = batch["words"].split(batch["words_lengths"].tolist())
        right = [ours == true.tolist() for ours, true in zip(heard, wanted, strict=True)]
        return {name: v.item() for name, v in figures.items()}, float(np.mean(right))

    def _tokens(self, batch: dict[str, Any]) -> tuple[Tensor, list[int]]:
        tokens, counts = self.thinker.audio_tower(batch["windows"], batch["lengths"])
        return tokens[up_to(counts, tokens.shape[1])], batch["clip_tokens"].tolist()

    def _tensors(
        self, mels: list[Mel], texts: list[str], sounds: list[list[str]]
    ) -> dict[str, Any]:
        """mels: of clips with these texts, and behind them of rows of these sounds."""
        windows, lengths = zip(*(split_windows(torch.from_numpy(m)) for m in mels), strict=True)
        return {
            "windows": torch.cat(windows),
            "lengths": torch.cat(lengths),
            "clip_tokens": torch.tensor([num_tokens(mel.shape[1]) for mel in mels]),
        } | self.transcriber.targets(texts, sounds)


class Transcriber:
    """CTC over phones and over text tokens, for the tokens of an audio encoder; 0 is the blank."""

    def __init__(self, thinker: Thinker, tokenizer: Tokenizer):
        width = thinker.config.text_config.hidden_size
        self.phones, self.blank = nn.Linear(width, len(PHONES) + 1), nn.Linear(width, 1)
        self.heads = nn.ModuleDict({"phones": self.phones, "blank": self.blank})
        self.thinker, self.tokenizer = thinker, tokenizer

    def losses(self, tokens: Tensor, counts: list[int], batch: dict[str, Any]) -> dict[str, Tensor]:
        """tokens [n,C] of clips with `counts` tokens each, and `targets` -> a loss per clip."""
        losses = {}
        for name, scores in (("phones", self.phones(tokens)), ("words", self._words(tokens))):
            lengths = torch.tensor(counts)
            losses[name] = F.ctc_loss(
                side_by_side(scores.float().log_softmax(-1), lengths),
                batch[name],
                lengths,
                batch[name + "_lengths"],
                zero_infinity=True,
            )
        return losses

    def transcribe(self, tokens: Tensor, counts: list[int]) -> list[list[int]]:
        """The most likely class of every token, repeats and blanks removed."""
        best = self._words(tokens).argmax(-1).split(counts)
        runs = (clip.unique_consecutive().tolist() for clip in best)
        return [[token for token in clip if token] for clip in runs]

    def targets(self, texts: list[str], sounds: list[list[str]]) -> dict[str, Tensor]:
        """What is said in each clip, and heard in rows of sounds, as classes of both losses.
        Sounds have no phones."""
        said = ["".join(c for c in text.lower() if c not in MARKS) for text in texts]
        phones = [[p for word in text.split() for p in _phones(word)] for text in said]
        phones += [[] for _ in sounds]
        named = said + ["".join(f" {sound}" for sound in row) for row in sounds]
        words = [[token + 1 for token in self.tokenizer.encode(text)] for text in named]
        return {
            "phones": torch.tensor([p for clip in phones for p in clip], dtype=torch.long),
            "phones_lengths": torch.tensor([len(clip) for clip in phones]),
            "words": torch.tensor([w for clip in words for w in clip]),
            "words_lengths": torch.tensor([len(clip) for clip in words]),
        }

    def _words(self, tokens: Tensor) -> Tensor:
        table = self.thinker.model.embed_tokens.weight
        scores = F.linear(tokens, table) * table.shape[1] ** -0.5
        return torch.cat((self.blank(tokens), scores), dim=-1)


def _row_of_sounds(rng: np.random.Generator) -> tuple[list[str], Samples]:
    """One sound, or a row of one kind or of several; and their names. No row of one kind or of two
    sounds whose question is held out."""
    drawn = rng.random()
    if drawn < ONE_SHARE:
        name = str(rng.choice(SOUNDS))
        return [name], sounds.single(name, rng=rng)
    if drawn < ONE_SHARE + OTHERS_SHARE:
        kinds = rng.choice(SOUNDS, size=int(rng.integers(2, MOST_KINDS + 1)), replace=False)
        more = rng.choice(kinds, size=int(rng.integers(3, 7)) - len(kinds))
        # every kind is heard: a row of one kind may be held out
        names = [str(name) for name in rng.permutation([*kinds, *more])]
        return names, sounds.row(names, rng=rng)
    options = senses.shown("train", "how often")
    sound, number = options[rng.integers(len(options))]
    names = [sound] * NUMBERS.index(number)
    return names, sounds.row(names, rng=rng)


def _mel(samples: Samples) -> Mel:
    return log_mel(samples, maximum="running")


def masked(mel: Mel, rng: np.random.Generator) -> Mel:
    """The mel with one random band of time and one of frequency silenced."""
    mel = mel.copy()
    for axis, largest in ((1, MASKED_FRAMES), (0, MASKED_BINS)):
        width = int(rng.integers(largest + 1))
        first = int(rng.integers(max(1, mel.shape[axis] - width)))
        np.moveaxis(mel, axis, 0)[first : first + width] = mel.min()
    return mel


@cache
def _phones(word: str) -> list[int]:
    return [PHONES.index(phone) + 1 for phone in speech.pronounce(to_ascii(word))]


def _write_mels(path: Path, corpus: Corpus, clips: list[dict], total: int) -> None:
    unfinished = path.with_suffix(".part.npy")
    mels = np.lib.format.open_memmap(
        unfinished, mode="w+", dtype=np.float16, shape=(total, EAR_BINS)
    )
    at = 0
    for clip in tqdm(clips, desc="log-mels of the questions"):
        mel = _mel(corpus.clip(clip)).T
        mels[at : at + len(mel)] = mel
        at += len(mel)
    assert at == total, (at, total)
    mels.flush()
    unfinished.replace(path)
