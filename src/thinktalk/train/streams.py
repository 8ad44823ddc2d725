"""A packed corpus of replies -> one long recording per voice, with its mel and its codec ids.

Crops of a stream train tokenizer, DiT and vocoder; slices of it are the Talker's targets. Mel and
ids are computed once and kept beside the corpus.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from thinktalk.media.mel import VOICE_HOP_SAMPLES, voice_mel
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.playroom.dataset import Corpus, open_corpus

TEST_SHARE = 0.02  # of every stream's end is never trained on
CHUNK_FRAMES = 6000  # mel and ids are computed this many frames at a time ...
OVERLAP_FRAMES = 40  # ... with this much context on both sides


@dataclass(frozen=True)
class Stream:
    """All replies of one voice behind one another.

    wave: int16 [n] at 24 kHz; mel: float16 [n/240, 80]; rows: the corpus rows of this voice, each
    with "frame", where it starts in mel, and "frames".
    """

    voice: str
    wave: NDArray[np.int16]
    mel: NDArray[np.float16]
    rows: list[dict]

    @property
    def train_frames(self) -> int:
        return int(len(self.mel) * (1 - TEST_SHARE))


def open_streams(folder: Path) -> list[Stream]:
    """Streams of the corpus in `folder`, in alphabetical order of the voices."""
    corpus = open_corpus(folder)
    voices = sorted({row["voice"] for row in corpus.rows})
    return [_stream(folder, corpus, voice) for voice in voices]


def _stream(folder: Path, corpus: Corpus, voice: str) -> Stream:
    frame, rows = 0, []
    for row in corpus.rows:
        if row["voice"] == voice:
            frames = row["samples"] // VOICE_HOP_SAMPLES
            rows.append(row | {"frame": frame, "frames": frames})
            frame += frames
    wave = _cached(
        folder / f"wave_{voice}.npy",
        lambda: np.concatenate(
            [corpus.waves[row["start"] : row["start"] + row["samples"]] for row in rows]
        ),
    )
    mel = _cached(folder / f"mel_{voice}.npy", lambda: mel_of(wave, label=f"mel of {voice}"))
    return Stream(voice, wave, mel, rows)


def _cached(path: Path, make: Callable[[], NDArray]) -> NDArray:
    """What `make` gives, read from a file: many processes share its pages."""
    if not path.exists():
        unfinished = path.with_suffix(".part.npy")
        np.save(unfinished, make())
        unfinished.replace(path)
    return np.load(path, mmap_mode="r")


def mel_of(wave: NDArray[np.int16], *, label: str) -> NDArray[np.float16]:
    """A long recording [n] -> its mel [n/240, 80], without much of it in memory; n > 784."""
    total = len(wave) // VOICE_HOP_SAMPLES
    mel = np.empty((total, 80), np.float16)
    for first in tqdm(range(0, total, CHUNK_FRAMES), desc=label):
        before = min(first, OVERLAP_FRAMES)
        last = min(first + CHUNK_FRAMES + OVERLAP_FRAMES, total)
        samples = wave[(first - before) * VOICE_HOP_SAMPLES : last * VOICE_HOP_SAMPLES]
        part = voice_mel(samples.astype(np.float32) / np.float32(32768))
        kept = part[before : before + CHUNK_FRAMES]
        mel[first : first + len(kept)] = kept
    return mel


@torch.no_grad()
def codec_ids(stream: Stream, tokenizer: SpeechTokenizer) -> NDArray[np.int64]:
    """[frames/2] ids of the whole stream."""
    per_code = tokenizer.config.frames_per_code
    parts = []
    for first in range(0, len(stream.mel), CHUNK_FRAMES):
        before = min(first, OVERLAP_FRAMES)
        last = first + CHUNK_FRAMES + OVERLAP_FRAMES
        mel = torch.from_numpy(stream.mel[first - before : last].astype(np.float32))
        ids = tokenizer.encode(mel[None])[0, before // per_code :]
        parts.append(ids[: CHUNK_FRAMES // per_code].numpy())
    return np.concatenate(parts)
