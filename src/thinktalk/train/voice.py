"""Recordings for the speech side: what tells DiT and tokenizer who speaks, and the codec encoder.

A checkpoint that thinktalk trained holds the encoder of its speech tokenizer beside the official
files, so that recordings can become codec ids of that very checkpoint.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from thinktalk.config import SpeechTokenizerConfig
from thinktalk.model.speech_tokenizer import MEL_MEAN, MEL_STD, SpeechTokenizer

ENCODER_FILE = "speech_encoder.safetensors"

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
    most = max(starts, key=lambda start: spoken(mel[start : start + REF_MEL_FRAMES]).sum())
    return VoicePrint(condition(mel)[None], mel[None, most : most + REF_MEL_FRAMES])


def condition(mel: Floats) -> Floats:
    """Mean and spread of every mel bin over the spoken frames: [F,80] -> [160].

    Long-term spectra identify a speaker well enough for a closed set of clean voices, and need no
    network of their own; the official `cond` is the x-vector of an unpublished speaker model.
    """
    loud = mel[spoken(mel)].astype(np.float32)
    mean, spread = loud.mean(0), loud.std(0)
    return np.concatenate(((mean - MEL_MEAN) / MEL_STD, spread / MEL_STD)).astype(np.float32)


def save_speech_encoder(tokenizer: SpeechTokenizer, folder: Path) -> None:
    """Writes the encoding half in float16 (bfloat16 would change one id in a hundred)."""
    tensors = {
        name: value.detach().half().contiguous()
        for name, value in tokenizer.state_dict().items()
        if name.startswith("encoder")
    }
    metadata = {"config": json.dumps(tokenizer.config.to_dict())}
    save_file(tensors, folder / ENCODER_FILE, metadata=metadata)


def load_speech_encoder(folder: Path) -> SpeechTokenizer:
    """The speech tokenizer of a checkpoint, to encode with; its decoder is untrained.

    Raises ValueError where the checkpoint has none: the official ones were published without.
    """
    path = folder / ENCODER_FILE
    if not path.exists():
        raise ValueError(f"{folder} has no {ENCODER_FILE}: no encoder of its codec ids is known")
    with safe_open(path, framework="pt") as file:
        config = SpeechTokenizerConfig.from_dict(json.loads(file.metadata()["config"]))
        tokenizer = SpeechTokenizer(config)
        encoder = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    missing, unexpected = tokenizer.load_state_dict(encoder, strict=False)
    lacking = [name for name in missing if name.startswith("encoder")]
    if lacking or unexpected:
        raise ValueError(f"{path} does not fit its config: {[*lacking, *unexpected]}")
    return tokenizer.eval()


def spoken(mel: Floats) -> NDArray[np.bool_]:
    """Which frames of a mel [F,80] are not pause: [F]."""
    loudness = mel.astype(np.float32).mean(1)
    return loudness > np.percentile(loudness, 95) - QUIETEST_SPEECH
