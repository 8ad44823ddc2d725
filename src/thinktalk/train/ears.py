"""Spoken replies and their text in; what an ear makes of them, and by how much they are wrong, out.

An ear hears rendered speech (pocketsphinx, or any program), or reads the codec ids alone: that
costs a hundredth, and tells replies apart by fractions of a word.
"""

from __future__ import annotations

import math
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from thinktalk.eval.metrics import normalise, pause_errors, word_errors
from thinktalk.generate import render
from thinktalk.media.encode import write_wav
from thinktalk.media.mel import VOICE_HZ
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.train.spelling import READER_FILE, Reader, letter_losses, new_reader, reading_batch
from thinktalk.train.voice import load_speech_encoder
from thinktalk.weights import LoadedModel

PAUSE_WEIGHT = 0.5  # of a pause error, beside a word error
NATS_PER_WORD = 8.0  # of a reader's doubt count as one wrong word
MOST_ERRORS = 100.0  # of a reply that is too short to say its text


@dataclass(frozen=True)
class Candidate:
    """errors: what replies to a prompt are ranked by, in words."""

    codes: list[int]
    heard: str
    word_errors: int
    pause_errors: int
    errors: float


class Ears(Protocol):
    def spell(self, text: str) -> str:
        """A text as the ear writes it: its words, a space between."""
        ...

    def judge(
        self, takes: Sequence[list[int]], text: str, *, model: LoadedModel, voice: str
    ) -> list[Candidate]:
        """What it makes of the codec ids of several replies that shall say the text."""
        ...


@dataclass(frozen=True)
class Ear:
    """What hears rendered speech. transcribe(samples, sample_hz=...) -> words, as `spelling` writes
    them. Errors are wrong words, and half of the pauses that do not follow the marks."""

    transcribe: Callable[..., str]
    spelling: Callable[[str], str] = normalise

    def spell(self, text: str) -> str:
        return self.spelling(text)

    def judge(
        self, takes: Sequence[list[int]], text: str, *, model: LoadedModel, voice: str
    ) -> list[Candidate]:
        return [self._judged(codes, text, model, voice) for codes in takes]

    def _judged(self, codes: list[int], text: str, model: LoadedModel, voice: str) -> Candidate:
        wave = render(model.omni, codes, voice=model.voices[voice], seed=0, exact=False)
        heard = normalise(self.transcribe(wave, sample_hz=VOICE_HZ)) if codes else ""
        paused = pause_errors(wave, text, sample_hz=VOICE_HZ)
        wrong = word_errors(heard.split(), self.spell(text).split())
        return Candidate(codes, heard, wrong, paused, wrong + PAUSE_WEIGHT * paused)


@dataclass(frozen=True)
class CodeEar:
    """What reads codec ids: errors are how unlikely the letters of the text are in them."""

    tokenizer: SpeechTokenizer
    reader: Reader

    def spell(self, text: str) -> str:
        return normalise(text)

    @torch.no_grad()
    def judge(
        self, takes: Sequence[list[int]], text: str, *, model: LoadedModel, voice: str
    ) -> list[Candidate]:
        codes = [np.array(take, np.int64) for take in takes]
        batch = reading_batch(self.tokenizer, codes, [text] * len(takes))
        scores = self.reader(batch["quantised"])
        nats = letter_losses(scores, batch).tolist()
        wanted, needed = self.spell(text).split(), int(batch["num_letters"][0])
        judged = []
        for take, each, far in zip(takes, scores, nats, strict=True):
            heard = _written(each[: len(take)])
            errors = far / NATS_PER_WORD if len(take) >= needed else math.inf
            wrong = word_errors(heard.split(), wanted)
            judged.append(Candidate(take, heard, wrong, 0, min(errors, MOST_ERRORS)))
        return judged


def load_code_ear(folder: Path) -> CodeEar:
    """The ear of a checkpoint. Raises ValueError where it has none."""
    tokenizer = load_speech_encoder(folder)
    if not (folder / READER_FILE).exists():
        raise ValueError(
            f"{folder} has no {READER_FILE}, so nobody reads its codes; train one by `thinktalk "
            "train reader`, or choose another recogniser"
        )
    reader = new_reader(tokenizer.config)
    reader.load_state_dict(load_file(folder / READER_FILE))
    return CodeEar(tokenizer, reader.eval())


def command_ear(command: str) -> Ear:
    """An ear that is another program: it gets the path of a 24 kHz WAV file as its last argument
    and writes the words to stdout. Raises ValueError, when it is used, if the program fails."""
    words = shlex.split(command)
    if not words:
        raise ValueError("the recogniser's command is empty; give a program, or leave it out")

    def transcribe(samples: NDArray[np.float32], *, sample_hz: int) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "reply.wav"
            write_wav(path, samples, sample_hz)
            try:
                done = subprocess.run(
                    [*words, str(path)], capture_output=True, text=True, check=True
                )
            except FileNotFoundError:
                raise RecogniserError(f"the recogniser {words[0]!r} is not installed") from None
            except subprocess.CalledProcessError as error:
                last = (error.stderr or "").strip().splitlines()[-1:]
                raise RecogniserError(
                    f"the recogniser {command!r} failed with status {error.returncode}"
                    f" ({' '.join(last) or 'it said nothing'}); try it by hand on a WAV file"
                ) from None
        return done.stdout.strip()

    return Ear(transcribe)


class RecogniserError(RuntimeError):
    """Not a matter of the row that was being judged."""


def _written(scores: Tensor) -> str:
    """The most likely letters of a clip [N,257], repeats and blanks removed."""
    classes = scores.argmax(-1).unique_consecutive().tolist()
    return bytes(c - 1 for c in classes if c).decode(errors="ignore")
