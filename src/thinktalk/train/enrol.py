"""A recording in; a voice of a checkpoint out, for generate, live and serve alike.

A voice is three things in spk_dict.pt: the token that tells the Talker who speaks, and cond and
ref_mel, which tell the DiT. Its token's embedding begins as a copy of that of a voice that is
there, so that the Talker speaks at once as it does for that one; `talker-voice` teaches it more.

For checkpoints of this project, known by their speech encoder, all of it is what training uses. The
official cond comes from a speaker network that was never named: there it is borrowed, or given by
the user, and ref_mel is made as the later Qwen3-TTS prepares it. Nobody has verified that.
"""

from __future__ import annotations

import json
import shutil
import struct
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from thinktalk.config import OmniConfig
from thinktalk.generate import load_tokenizer
from thinktalk.media.decode import load_audio
from thinktalk.media.mel import EAR_HZ, VOICE_BINS, VOICE_FLOOR, VOICE_HZ, slaney_filters, voice_mel
from thinktalk.train.voice import ENCODER_FILE, REF_MEL_FRAMES, condition, spoken, voice_print
from thinktalk.weights import CONFIG, VOICES, Voice, find, partial, read_json, read_voices
from thinktalk.weights import weight_files as shards_of

Floats = NDArray[np.float32]

EMBEDDINGS = "thinker.model.embed_tokens.weight"
LONGEST_NAME = 64
LEAST_SPEECH_S = 2.0  # frames that are not pause
QUIETEST_DB = -45.0  # of full scale, the loud frames
CLIPPED_RUN, CLIPPED_SHARE = 3, 5e-4  # samples in a row at the peak; share of such samples
FULL_SCALE = 0.99
# How Qwen3-TTS takes the mel of a reference (training.md 1.5): 16 kHz, so nothing above 8 kHz.
THEIR_WINDOW_SAMPLES, THEIR_FFT_SAMPLES, THEIR_HOP_SAMPLES = 640, 1024, 160


@dataclass(frozen=True)
class Enrolled:
    """folder: the checkpoint with the voice; like: whose token it began with; borrowed: whether its
    cond is that one's, too."""

    folder: Path
    voice: Voice
    like: str
    borrowed: bool
    verified: bool


def add(
    name: str,
    recording: Any,
    *,
    model: str | Path,
    out: Path | None = None,
    like: str | None = None,
    cond: Path | None = None,
) -> Enrolled:
    """Adds a voice to a checkpoint, or with `out` to a copy of it.

    recording: what load_audio takes, at least 4 s of one speaker. like: the voice that it resembles
    most, by default found by cond. cond: an .npy file, for checkpoints whose cond is of an unknown
    network. Raises ValueError for recordings that are too short, silent or clipped, and for names
    that are taken; nothing is changed then.
    """
    base = find(model)
    config = OmniConfig.from_dict(read_json(base / CONFIG))
    voices = read_voices(base / VOICES, config)
    _check_name(name, voices)
    if not voices:
        raise ValueError(f"{base} has no voices to begin with; take its {VOICES} from the model")
    if like is not None and like not in voices:
        raise ValueError(f"there is no voice {like!r} to resemble; there are {', '.join(voices)}")
    wave = checked(load_audio(recording, sample_rate=VOICE_HZ))
    token = free_token(base, config, voices)
    width = config.token2wav_config.dit_config.enc_emb_dim
    ours = (base / ENCODER_FILE).exists() and width == len(condition(voice_mel(wave)))
    mel = voice_mel(wave) if ours else _their_mel(load_audio((wave, VOICE_HZ), sample_rate=EAR_HZ))
    mel = mel + _level(voices) - mel[spoken(mel)].mean()  # as loud as the others
    print_ = voice_print(mel)
    given = torch.from_numpy(print_.cond) if ours else _given_cond(cond, width)
    like = like or _nearest(voices, given)
    taken = voices[like].cond if given is None else given
    voice = Voice(token, taken.float(), torch.from_numpy(print_.ref_mel))
    folder = _target(base, model, out)
    _copy_row(folder, voices[like].bos_token, token)
    _write(folder, {**voices, name: voice})
    return Enrolled(folder, voice, like, borrowed=given is None, verified=ours)


def as_told(options: Namespace) -> None:
    """What `thinktalk voice` says."""
    if options.action == "list":
        for name, voice in listed(options.model).items():
            seconds = voice.ref_mel.shape[1] / 100
            print(f"{name}: token {voice.bos_token}, {seconds:.1f} s of reference")
    elif options.action == "remove":
        print(
            f"{remove(options.name, model=options.model, out=options.out)} without {options.name}"
        )
    else:
        made = add(
            options.name,
            options.recording,
            model=options.model,
            out=options.out,
            like=options.like,
            cond=options.cond,
        )
        print(f"{made.folder} has {options.name}, token {made.voice.bos_token}, like {made.like}")
        if not made.verified:
            taken = f"cond is that of {made.like}" if made.borrowed else "cond is as given"
            print(
                f"Unverified here, for nobody knows how the official voices were made: {taken}; "
                "ref_mel is made as Qwen3-TTS does. Listen before you rely on it."
            )


def remove(name: str, *, model: str | Path, out: Path | None = None) -> Path:
    """Removes a voice from a checkpoint, or from a copy of it; its folder."""
    base = find(model)
    voices = listed(model)
    if name not in voices:
        raise ValueError(f"there is no voice {name!r}; there are {', '.join(voices)}")
    if len(voices) == 1:
        raise ValueError(f"{name} is the only voice; a checkpoint that speaks needs one")
    folder = _target(base, model, out)
    _write(folder, {other: voice for other, voice in voices.items() if other != name})
    return folder


def listed(model: str | Path) -> dict[str, Voice]:
    """The voices of a checkpoint, in the file's order."""
    base = find(model)
    return read_voices(base / VOICES, OmniConfig.from_dict(read_json(base / CONFIG)))


def checked(wave: Floats) -> Floats:
    """The recording, 24 kHz [n]. Raises ValueError for what cannot become a voice."""
    seconds = len(wave) / VOICE_HZ
    least = REF_MEL_FRAMES // 100
    if seconds < least:
        raise ValueError(f"the recording is {seconds:.1f} s long; a voice needs at least {least} s")
    frames = wave[: len(wave) // 240 * 240].reshape(-1, 240)
    loud = 10 * np.log10(np.percentile(np.square(frames).mean(1), 95) + 1e-12)
    if loud < QUIETEST_DB:
        raise ValueError(
            f"the recording is silent: its loud parts are at {loud:.0f} dB of full scale; record "
            f"it louder, at {QUIETEST_DB:.0f} dB at least"
        )
    peak = float(np.abs(wave).max())
    at_peak = (np.abs(wave) >= 0.998 * peak) & (peak >= FULL_SCALE)
    runs = sliding_window_view(at_peak, CLIPPED_RUN).all(1)
    if runs.mean() > CLIPPED_SHARE:
        raise ValueError(
            f"the recording is clipped: {runs.mean():.1%} of it stands at full scale; record it "
            "with less gain"
        )
    speech_s = spoken(voice_mel(wave)).sum() / 100
    if speech_s < LEAST_SPEECH_S:
        raise ValueError(
            f"there is {speech_s:.1f} s of speech in the recording, the rest is pause; a voice "
            f"needs {LEAST_SPEECH_S:.0f} s at least"
        )
    return wave


def free_token(folder: Path, config: OmniConfig, voices: Mapping[str, Voice]) -> int:
    """An id with an embedding that no text and no voice uses, behind those of the voices."""
    talker, thinker = config.talker_config, config.thinker_config
    taken = {voice.bos_token for voice in voices.values()}
    first = max(taken, default=0) + 1
    taken |= {
        talker.tts_text_start_token_id,
        talker.tts_text_end_token_id,
        talker.tts_text_pad_token_id,
    }
    size, known = thinker.text_config.vocab_size, load_tokenizer(folder).vocab_size
    for token in (*range(max(first, known), size), *range(known, min(first, size))):
        if token not in taken:
            return token
    raise ValueError(f"all {size} rows of the embedding are in use; remove a voice first")


def _check_name(name: str, voices: Mapping[str, Voice]) -> None:
    if name in voices:
        raise ValueError(f"there is a voice {name!r} already; remove it first, or choose a name")
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{name!r} is no name; use up to {LONGEST_NAME} letters")


def _given_cond(path: Path | None, width: int) -> torch.Tensor | None:
    if path is None:
        return None
    try:
        cond = np.load(path).astype(np.float32).reshape(1, -1)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of numbers ({error})") from None
    if cond.shape[1] != width or not np.isfinite(cond).all():
        raise ValueError(f"{path} holds {cond.shape[1]} numbers; this checkpoint needs {width}")
    return torch.from_numpy(cond)


def _nearest(voices: Mapping[str, Voice], cond: torch.Tensor | None) -> str:
    """The first voice where nothing tells."""
    if cond is None:
        return next(iter(voices))
    return min(voices, key=lambda name: float((voices[name].cond - cond).norm()))


def _level(voices: Mapping[str, Voice]) -> float:
    mels = [voice.ref_mel[0].numpy() for voice in voices.values()]
    return float(np.mean([mel[spoken(mel)].mean() for mel in mels]))


def _their_mel(wave: Floats) -> Floats:
    """16 kHz [n] -> natural-log mel [n/160, 80], 100 frames a second as well."""
    edge = (THEIR_FFT_SAMPLES - THEIR_HOP_SAMPLES) // 2
    frames = sliding_window_view(np.pad(wave, edge, mode="reflect"), THEIR_FFT_SAMPLES)
    window, side = np.hanning(THEIR_WINDOW_SAMPLES + 1)[:-1], THEIR_FFT_SAMPLES
    side = (THEIR_FFT_SAMPLES - THEIR_WINDOW_SAMPLES) // 2
    magnitude = np.abs(np.fft.rfft(frames[::THEIR_HOP_SAMPLES] * np.pad(window, side)))
    filters = slaney_filters(VOICE_BINS, THEIR_FFT_SAMPLES, EAR_HZ)
    return np.log(np.maximum(magnitude @ filters.T, VOICE_FLOOR)).astype(np.float32)


def _target(base: Path, model: str | Path, out: Path | None) -> Path:
    """The folder that is changed: the user's own, or a copy."""
    if out is None:
        if base != Path(model).expanduser():
            raise ValueError(
                f"{model} is not yours to change; give --out for a copy with the voice"
            )
        return base
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder for the copy")
    try:
        shutil.copytree(base, out, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise ValueError(f"{out} cannot be written ({error})") from error
    return out


def _copy_row(folder: Path, source: int, target: int) -> None:
    """Copies a row of the embedding inside the file, whatever its dtype; nobody reads it yet."""
    for path in shards_of(folder):
        with path.open("r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entry = json.loads(file.read(length)).get(EMBEDDINGS)
            if entry is None:
                continue
            begin, end = entry["data_offsets"]
            row = (end - begin) // entry["shape"][0]
            file.seek(8 + length + begin + source * row)
            content = file.read(row)
            file.seek(8 + length + begin + target * row)
            file.write(content)
            return
    raise ValueError(f"{folder} has no {EMBEDDINGS}; is it a whole checkpoint?")


def _write(folder: Path, voices: Mapping[str, Voice]) -> None:
    path = folder / VOICES
    torch.save({name: vars(voice) for name, voice in voices.items()}, partial(path))
    partial(path).replace(path)
