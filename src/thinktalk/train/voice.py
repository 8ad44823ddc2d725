"""A recording's mel in, a voice out: the vectors that tell DiT and tokenizer who speaks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thinktalk.model.speech_tokenizer import MEL_MEAN, MEL_STD

Floats = NDArray[np.float32]

REF_MEL_FRAMES = 400  # 4 s, what the official voices hold
QUIETEST_SPEECH = 3.0  # nepers below the loudest frames: what lies below is pause


@dataclass(frozen=True)
class VoicePrint:
    """cond: float32 [1,160]; ref_mel: float32 [1,400,80] natural-log mel."""

    cond: Floats
    ref_mel: Floats


def voice_print(mel: Floats) -> VoicePrint:
    """mel [F,80] of one speaker, at least 4 s -> the voice. Raises ValueError for less."""
    if len(mel) < REF_MEL_FRAMES:
        raise ValueError(
            f"the recording has {len(mel) / 100:.1f} s of sound; a voice needs at least "
            f"{REF_MEL_FRAMES // 100} s of speech"
        )
    starts = range(0, len(mel) - REF_MEL_FRAMES + 1, REF_MEL_FRAMES // 4)
    most = max(starts, key=lambda start: _speech(mel[start : start + REF_MEL_FRAMES]).sum())
    return VoicePrint(condition(mel)[None], mel[None, most : most + REF_MEL_FRAMES])


def condition(mel: Floats) -> Floats:
    """Mean and spread of every mel bin over the spoken frames: [F,80] -> [160].

    Long-term spectra identify a speaker well enough for a closed set of clean voices, and need no
    network of their own; the official `cond` is the x-vector of an unpublished speaker model.
    """
    spoken = mel[_speech(mel)].astype(np.float32)
    mean, spread = spoken.mean(0), spoken.std(0)
    return np.concatenate(((mean - MEL_MEAN) / MEL_STD, spread / MEL_STD)).astype(np.float32)


def _speech(mel: Floats) -> NDArray[np.bool_]:
    loudness = mel.astype(np.float32).mean(1)
    return loudness > np.percentile(loudness, 95) - QUIETEST_SPEECH
