"""Sound files: what is written can be read again, at once or piece by piece."""

import wave
from pathlib import Path

import media_samples as samples
import numpy as np
import pytest

from thinktalk.media.decode import load_audio
from thinktalk.media.encode import FORMATS, SoundEncoder, encode, to_pcm16, write_wav

RATE = 24000


@pytest.mark.parametrize("format", FORMATS)
def test_whole_and_in_pieces(format: str) -> None:
    tone = samples.tone(1.0, RATE)
    encoder = SoundEncoder(format)
    pieces = [encoder.push(tone[i : i + 777]) for i in range(0, len(tone), 777)]
    for data in (encode(tone, format=format), b"".join([*pieces, encoder.finish()])):
        if format == "pcm":
            assert data == to_pcm16(tone)
            continue
        back = load_audio(data, sample_rate=RATE)
        assert abs(len(back) - len(tone)) < 3000
        assert abs(samples.pitch(back, RATE) - 440) < 2


@pytest.mark.parametrize("format", ["mp3", "aac", "wav", "pcm"])
def test_bytes_leave_early(format: str) -> None:
    encoder = SoundEncoder(format)
    early = b"".join(encoder.push(samples.tone(0.25, RATE)) for _ in range(4))
    assert len(early) > len(encoder.finish())


@pytest.mark.parametrize("format", FORMATS)
def test_no_sound_at_all(format: str) -> None:
    assert isinstance(encode(np.zeros(0, np.float32), format=format), bytes)


def test_levels_are_clipped() -> None:
    levels = np.frombuffer(to_pcm16(np.array([0, 0.5, 1, -1, 3, -3], np.float32)), "<i2")
    assert levels.tolist() == [0, 16384, 32767, -32768, 32767, -32768]


def test_write_wav(tmp_path: Path) -> None:
    tone = samples.tone(0.5, RATE)
    write_wav(tmp_path / "a.wav", tone)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert file.getnframes() == len(tone)
    back = load_audio(tmp_path / "a.wav", sample_rate=RATE)
    np.testing.assert_allclose(back, tone, atol=1 / 32768)
    assert (tmp_path / "a.wav").read_bytes() == encode(tone, format="wav")


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match="unknown sound format 'midi'; give one of wav"):
        SoundEncoder("midi")
