"""The speech of a reply in; its codec ids out: listed, in a .npy file, or made from a recording."""

from __future__ import annotations

import io
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thinktalk.media.decode import load_audio
from thinktalk.media.mel import VOICE_HOP_SAMPLES, VOICE_HZ, voice_mel
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.train.features import FeatureCache
from thinktalk.train.lengths import sound_seconds
from thinktalk.train.rows import Speech
from thinktalk.train.shards import Member, content

Ints = NDArray[np.int64]

# Part of every key: raise it when the same recording shall give other ids.
CODES_VERSION = 1


class CodeReader:
    """Reads codec ids from 0 to num_codes - 1; recordings need an encoder."""

    def __init__(
        self,
        num_codes: int,
        *,
        encoder: SpeechTokenizer | None = None,
        cache: FeatureCache | None = None,
    ):
        self.num_codes, self.encoder, self.cache = num_codes, encoder, cache

    def read(self, speech: Speech) -> Ints:
        """The ids [n], 50 a second. Raises ValueError if there are none, or wrong ones."""
        if speech.wave is None:
            return self._checked(_listed(speech.codes), speech)
        encoder = self._needed_encoder()
        if self.cache is None:
            return encode_speech(speech.wave, encoder)
        key = self.cache.digest(f"codes {CODES_VERSION} {self._encoder_stamp}", speech.wave)
        return self.cache.get(key, lambda: {"codes": encode_speech(speech.wave, encoder)})["codes"]

    def count(self, speech: Speech) -> int:
        """How many ids that is, from the header of a recording if it tells."""
        if speech.wave is None:
            return len(self.read(speech))
        per_code = self._needed_encoder().config.frames_per_code
        seconds = sound_seconds(content(speech.wave))
        if seconds is None:
            return len(self.read(speech))
        return int(seconds * VOICE_HZ) // (VOICE_HOP_SAMPLES * per_code)

    def _checked(self, codes: Ints, speech: Speech) -> Ints:
        if not len(codes):
            raise ValueError(f"the codes of {speech.speaker}'s reply are empty")
        wrong = codes[(codes < 0) | (codes >= self.num_codes)]
        if len(wrong):
            raise ValueError(
                f"codes hold {wrong[0]}, but the codec ids of this model are 0 to "
                f"{self.num_codes - 1}; were they made by its own speech tokenizer?"
            )
        return codes

    def _needed_encoder(self) -> SpeechTokenizer:
        if self.encoder is None:
            raise ValueError(
                "there is a recording of speech, but this checkpoint has no speech encoder; give "
                "codes instead"
            )
        return self.encoder

    @cached_property
    def _encoder_stamp(self) -> str:
        assert self.encoder is not None and self.cache is not None
        weights = [weight.detach().float().cpu().numpy() for weight in self.encoder.parameters()]
        return self.cache.digest(repr(self.encoder.config), weights)


@torch.no_grad()
def encode_speech(wave: Any, encoder: SpeechTokenizer) -> Ints:
    """A recording, as load_audio takes it or in a shard -> whole codec ids [n]."""
    mel = torch.from_numpy(voice_mel(load_audio(content(wave), sample_rate=VOICE_HZ)))
    per_code = encoder.config.frames_per_code
    whole = len(mel) // per_code * per_code
    if not whole:
        raise ValueError("a recording of speech is shorter than one codec id; leave it out")
    mel = mel[None, :whole].to(encoder.encoder_in.weight.device)
    return encoder.encode(mel)[0].cpu().numpy()


def _listed(codes: Any) -> Ints:
    """Ids in a list, an array or a .npy file."""
    if isinstance(codes, str | Member):
        name = codes.name if isinstance(codes, Member) else codes
        try:
            codes = np.load(io.BytesIO(codes.read()) if isinstance(codes, Member) else codes)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{name} is no .npy file of codec ids ({error})") from None
    try:
        array = np.asarray(codes)
    except ValueError:
        raise ValueError("codes are no row of whole numbers; correct them") from None
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        kind = f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"codes are {kind}; give one row of whole numbers")
    return array.astype(np.int64)
