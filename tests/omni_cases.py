"""Conversations for the tests of the whole system, and what is recorded of an answer to one.

Shared by the recorder, the reference and our tests. All media come from formulas; films are
lossless, so that what is decoded equals what the reference is given as arrays.
"""

import hashlib
import io
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import av
import media_samples
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Part = tuple[Any, ...]  # ("text", words), ("image", h, w), ("audio", seconds) or
# ("video", frames, h, w, seconds of sound or None)
Turns = list[tuple[str, list[Part]]]
Said = tuple[list[int], list[int]]  # text ids and codec ids

FPS = 2
SOUND_HZ = 16_000
VIDEO_LIMITS = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 16}  # as tiny.py has for images
SYSTEM = ("system", [("text", "You are Qwen.")])
QUESTION = ("text", "What do you see and hear?")
CASES: dict[str, Turns] = {
    "text": [SYSTEM, ("user", [QUESTION])],
    "image": [SYSTEM, ("user", [("image", 84, 112), QUESTION])],
    "audio": [SYSTEM, ("user", [("audio", 3.3), QUESTION])],
    "video": [SYSTEM, ("user", [("video", 10, 56, 84, None), QUESTION])],
    "sounding": [SYSTEM, ("user", [("video", 10, 56, 84, 5.2), QUESTION])],
    # the sound ends so early that the last prompt position stays behind the pictures' last
    "early": [SYSTEM, ("user", [QUESTION, ("video", 4, 56, 84, 0.1)])],
    "turns": [
        SYSTEM,
        ("user", [("image", 100, 60), ("text", "What is this?")]),
        ("assistant", [("text", "A square.")]),
        ("user", [("audio", 0.7), ("image", 56, 56), ("text", "And now?")]),
        ("assistant", [("text", "A ball rolls.")]),
        ("user", [("video", 4, 56, 84, 1.5), ("audio", 2.1), ("text", "Then?")]),
    ],
}
MAX_TEXT_TOKENS = 8
MAX_CODEC_IDS = 30  # two whole blocks of 12 and a part


@dataclass
class Run:
    """All numbers of one answer. T prompt tokens, n reply tokens, f of them fed back."""

    prompt_ids: list[int]
    text_ids: list[int]  # the stop id left out, as everywhere
    codec_ids: list[int]
    wave: Tensor  # [samples]
    hidden: Tensor  # [T+f,C] Thinker states
    text_logits: Tensor  # [n,V], one row more where the stop id was chosen
    talker_hidden: Tensor  # [T+2+..,D]
    codec_logits: Tensor  # [..,codec V]

    @property
    def said(self) -> Said:
        return self.text_ids, self.codec_ids

    def slices(self) -> dict[str, Tensor]:
        """A small part of every tensor, in which any difference would show."""
        length = len(self.prompt_ids)
        prompt, reply = self.hidden[:length], self.hidden[length:]
        return {
            "hidden": torch.cat((prompt[:: length // 8], prompt[-4:], reply)),
            "text_logits": self.text_logits[:, ::3],
            "talker_hidden": self.talker_hidden[length - 2 :: 2],
            "codec_logits": self.codec_logits[::2, ::67],
            "wave": self.wave[::9],
        }


@dataclass(frozen=True)
class Inputs:
    """The media of a conversation, in order of appearance, as arrays."""

    images: list[NDArray[np.uint8]] = field(default_factory=list)  # [H,W,3]
    sounds: list[NDArray[np.float32]] = field(default_factory=list)  # of videos, too
    videos: list[NDArray[np.uint8]] = field(default_factory=list)  # [n,H,W,3]


def inputs(turns: Turns) -> Inputs:
    found = Inputs()
    for _, parts in turns:
        for kind, *details in parts:
            if kind == "image":
                found.images.append(media_samples.picture(*details))
            elif kind == "audio":
                found.sounds.append(sound(*details))
            elif kind == "video":
                number, height, width, seconds = details
                found.videos.append(media_samples.frames(number, height, width))
                if seconds is not None:
                    found.sounds.append(sound(seconds))
    return found


def messages(turns: Turns) -> list[dict[str, Any]]:
    """The conversation as thinktalk.generate takes it."""
    return [{"role": role, "content": [_part(*part) for part in parts]} for role, parts in turns]


def is_sounding(turns: Turns) -> bool:
    return any(part[0] == "video" and part[-1] for _, parts in turns for part in parts)


def sound(seconds: float) -> NDArray[np.float32]:
    """A rising tone with noise, in steps of 16-bit samples."""
    rng = np.random.RandomState(round(100 * seconds))
    t = np.arange(round(SOUND_HZ * seconds)) / SOUND_HZ
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * t / seconds) * t) + 0.02 * rng.randn(len(t))
    return (np.round(tone * 2**15) / 2**15).astype(np.float32)


def film(frames: NDArray[np.uint8], wave: NDArray[np.float32]) -> bytes:
    """A lossless film: frames [n,H,W,3], two a second, and 16 kHz mono sound."""
    held = io.BytesIO()
    with av.open(held, "w", format="matroska") as media:
        pictures = media.add_stream("ffv1", rate=FPS)
        pictures.height, pictures.width = frames.shape[1:3]
        pictures.pix_fmt = "bgr0"
        track = media.add_stream("pcm_s16le", rate=SOUND_HZ, layout="mono")
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            media.mux(pictures.encode(frame))
        samples = (wave[None] * 2**15).astype(np.int16)
        heard = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        heard.sample_rate, heard.pts = SOUND_HZ, 0
        media.mux([*pictures.encode(None), *track.encode(heard), *track.encode(None)])
    return held.getvalue()


def random_turns(seed: int) -> Turns:
    """One to three questions with any media; as the reference wants it, all videos sound or none.

    A sound is at least 40 ms long, which is a token.
    """
    rng = random.Random(seed)
    sounding = rng.random() < 0.5
    turns: Turns = [SYSTEM]
    for _ in range(rng.randint(1, 3)):
        parts: list[Part] = []
        for kind in rng.choices(("image", "audio", "video"), k=rng.randint(1, 2)):
            height, width = 28 * rng.randint(2, 4), 28 * rng.randint(2, 4)
            length = rng.randint(4, 450) / 100
            media = {
                "image": ("image", rng.randint(40, 200), rng.randint(40, 200)),
                "audio": ("audio", length),
                "video": (
                    "video",
                    2 * rng.randint(2, 5),
                    height,
                    width,
                    length if sounding else None,
                ),
            }
            parts.append(media[kind])
        words = "".join(rng.choices("abc xyz.?\n", k=rng.randint(1, 30))) + "?"
        parts.insert(rng.randint(0, len(parts)), ("text", words))
        turns += [("user", parts), ("assistant", [("text", "Yes.")])]
    return turns[:-1]


def checksum(state: Mapping[str, Tensor]) -> str:
    """Of all weights: changes with any bit of them."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def max_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value of the reference."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours.float() - theirs).abs().max() / theirs.abs().max())


def rms_error(ours: Tensor, theirs: Tensor) -> float:
    """Root mean square of the differences, relative to that of the reference's values."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours.float() - theirs).norm() / theirs.norm())


def _part(kind: str, *details: Any) -> dict[str, Any]:
    if kind == "text":
        return {"type": "text", "text": details[0]}
    if kind == "image":
        return {"type": "image", "image": media_samples.picture(*details)}
    if kind == "audio":
        return {"type": "audio", "audio": sound(*details)}
    *shape, seconds = details
    frames = media_samples.frames(*shape)
    source = frames if seconds is None else film(frames, sound(seconds))
    return {"type": "video", "video": source, **VIDEO_LIMITS}
