"""Spoken replies of anybody's rows in; one long recording per speaker out, as streams.py has them.

Decoded once, into the folder of the run: whoever trains tokenizer, DiT or vocoder draws crops from
it at any place, and nothing is decoded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from thinktalk.media.decode import load_audio
from thinktalk.media.mel import VOICE_HOP_SAMPLES, VOICE_HZ
from thinktalk.train.shards import Source, content
from thinktalk.train.streams import Stream, mel_of
from thinktalk.train.survey import BAD_ROW_ERRORS, BadRow, reason_of
from thinktalk.train.voice import REF_MEL_FRAMES

LOG = logging.getLogger(__name__)

INDEX = "index.jsonl"
FRAMES_GRID = 2  # of a clip's length: whole codec ids
ROWS_AT_A_TIME = 256
REPORTED_ROWS = 10

Clip = tuple[str, str, NDArray[np.int16]]  # speaker, text, samples


def streams_of(
    sources: Sequence[Source], folder: Path, *, workers: int = 4, max_bad_share: float = 0.01
) -> list[Stream]:
    """A stream for every speaker of the rows' recorded replies, in alphabetical order.

    folder: where they are kept. Rows without a recording are left out; bad ones are told, and more
    than max_bad_share of them is a ValueError. So is a speaker with less than 4 s.
    """
    stamp = hashlib.sha256("\n".join(source.stamp() for source in sources).encode()).hexdigest()
    kept = folder / f"recordings-{stamp[:16]}"
    if not (kept / INDEX).exists():
        part = kept.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write(sources, part, workers=workers, max_bad_share=max_bad_share)
        part.rename(kept)
    rows = [json.loads(line) for line in (kept / INDEX).read_text("utf-8").splitlines()]
    streams = []
    for number, voice in enumerate(sorted({row["voice"] for row in rows})):
        wave = np.memmap(kept / f"{number}.pcm", np.int16, "r")
        mel = np.load(kept / f"{number}.npy", mmap_mode="r")
        streams.append(Stream(voice, wave, mel, [row for row in rows if row["voice"] == voice]))
    return streams


def _write(sources: Sequence[Source], folder: Path, *, workers: int, max_bad_share: float) -> None:
    """N.pcm and N.npy (mel) of speaker N, and the index of all clips."""
    files: dict[str, Any] = {}
    frames: dict[str, int] = {}
    rows, bad = [], []
    for found in _clips(sources, workers=workers):
        if isinstance(found, BadRow):
            bad.append(found)
            continue
        for voice, text, samples in found:
            if voice not in files:
                files[voice], frames[voice] = (folder / f"{len(files)}.raw").open("wb"), 0
            count = len(samples) // VOICE_HOP_SAMPLES
            rows.append({"voice": voice, "text": text, "frame": frames[voice], "frames": count})
            files[voice].write(samples.tobytes())
            frames[voice] += count
    for row in bad[:REPORTED_ROWS]:
        LOG.warning("skipped %s", row)
    total = sum(map(len, sources))
    if len(bad) > max_bad_share * total:
        raise ValueError(
            f"{len(bad)} of {total} rows cannot be used, more than the {max_bad_share:.1%} that "
            f"may be skipped; mend them, or raise max_bad_share. The first: {bad[0]}"
        )
    if not rows:
        raise ValueError(
            "no row has a recording of a reply; add speech (and speaker) to the rows. Codes alone "
            "are not enough here: what they shall sound like must be known"
        )
    for voice, count in frames.items():
        if count < REF_MEL_FRAMES + FRAMES_GRID:
            raise ValueError(
                f"there is {count / 100:.1f} s of {voice}; a speaker needs more than "
                f"{REF_MEL_FRAMES // 100} s in all"
            )
    for number, voice in enumerate(sorted(files)):
        files[voice].close()
        Path(files[voice].name).rename(folder / f"{number}.pcm")
        wave = np.memmap(folder / f"{number}.pcm", np.int16, "r")
        np.save(folder / f"{number}.npy", mel_of(wave, label=f"mel of {voice}"))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / INDEX).write_text("".join(lines), encoding="utf-8")


def _clips(sources: Sequence[Source], *, workers: int) -> Iterator[list[Clip] | BadRow]:
    """What every row holds, in order."""

    def read(place: tuple[Source, int]) -> list[Clip] | BadRow:
        source, index = place
        try:
            return _recorded(source, index)
        except BAD_ROW_ERRORS as error:
            return BadRow(source.place(index), reason_of(error))

    places = [(source, index) for source in sources for index in range(len(source))]
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(places), desc="recordings", delay=2, disable=None) as bar,
    ):
        for first in range(0, len(places), ROWS_AT_A_TIME):  # so little waits in memory
            for found in pool.map(read, places[first : first + ROWS_AT_A_TIME]):
                bar.update()
                yield found


def _recorded(source: Source, index: int) -> list[Clip]:
    conversation = source.row(index).conversation
    clips = []
    for number, speech in conversation.speech.items():
        if speech.wave is None:
            continue
        text = conversation.messages[number]["content"]
        if not isinstance(text, str):
            text = "".join(part.get("text", "") for part in text)
        samples = load_audio(content(speech.wave), sample_rate=VOICE_HZ)
        grid = VOICE_HOP_SAMPLES * FRAMES_GRID
        whole = len(samples) // grid * grid
        if not whole:
            raise ValueError("a recording of speech is shorter than one codec id; leave it out")
        levels = np.round(samples[:whole].clip(-1, 1) * 32767).astype(np.int16)
        clips.append((speech.speaker, text, levels))
    return clips
