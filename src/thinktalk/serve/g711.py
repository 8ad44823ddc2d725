"""Telephone sound: G.711 mu-law and A-law bytes at 8 kHz, to 16-bit samples and back.

Tables are computed from the segments of ITU-T G.711, as 14-bit (mu) and 13-bit (A) magnitudes.
"""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from thinktalk.media.encode import to_pcm16
from thinktalk.media.mel import VOICE_HZ

TELEPHONE_HZ = 8000
LAWS = {"audio/pcmu": "mu", "audio/pcma": "a"}


def decode(data: bytes, *, law: str) -> NDArray[np.int16]:
    """Bytes -> int16 [n]."""
    return _DECODED[law][np.frombuffer(data, np.uint8)]


def encode(samples: NDArray[np.int16], *, law: str) -> bytes:
    """int16 [n] -> bytes, each the nearest level."""
    return _ENCODED[law][samples.astype(np.int32) + 32_768].tobytes()


class Telephone:
    """A voice at 24 kHz in, telephone bytes out, piece by piece."""

    def __init__(self, law: str):
        self._law = law
        self._resampler = soxr.ResampleStream(VOICE_HZ, TELEPHONE_HZ, 1, dtype="float32")

    def push(self, samples: NDArray[np.float32], *, last: bool = False) -> bytes:
        low = self._resampler.resample_chunk(samples.astype(np.float32), last=last)
        return encode(np.frombuffer(to_pcm16(low), "<i2"), law=self._law)


def _mu_levels() -> NDArray[np.int16]:
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    segment, step = (code >> 4) & 7, code & 15
    magnitude = (((step << 3) + 0x84) << segment) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _a_levels() -> NDArray[np.int16]:
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment, step = (code >> 4) & 7, code & 15
    low = (step << 4) + 8
    magnitude = np.where(segment == 0, low, (low + 0x100) << np.maximum(segment - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


def _nearest(levels: NDArray[np.int16]) -> NDArray[np.uint8]:
    """For every 16-bit sample the code whose level is nearest."""
    order = np.argsort(levels, kind="stable")
    borders = (levels[order][1:].astype(np.int32) + levels[order][:-1]) / 2
    return order[np.searchsorted(borders, np.arange(-32_768, 32_768))].astype(np.uint8)


_DECODED = {"mu": _mu_levels(), "a": _a_levels()}
_ENCODED = {law: _nearest(levels) for law, levels in _DECODED.items()}
