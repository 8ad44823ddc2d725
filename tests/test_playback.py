"""The sound of a reply: files in every format, numbers that overwrite nothing, players."""

import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from thinktalk import playback
from thinktalk.generate import Answer
from thinktalk.media.decode import load_audio


def answer(samples: int = 24000) -> Answer:
    tone = 0.5 * np.sin(np.arange(samples) * 2 * np.pi * 440 / 24000)
    return Answer("a", tone.astype(np.float32), [1], [2], [])


@pytest.mark.parametrize("name", ["a.wav", "a.MP3", "a.flac", "a.opus", "a.aac"])
def test_formats(tmp_path: Path, name: str) -> None:
    playback.save_sound(answer(), tmp_path / name)
    heard = load_audio(tmp_path / name)
    assert abs(len(heard) - 16000) < 2000
    spectrum = np.abs(np.fft.rfft(heard[:16000]))
    assert abs(int(spectrum.argmax()) - 440) < 5


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was spoken"):
        playback.save_sound(answer(0), tmp_path / "a.wav")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"give one of \.wav"):
        playback.sound_format(tmp_path / "a.doc")
    with pytest.raises(ValueError, match="does not exist; make it first"):
        playback.sound_format(tmp_path / "nowhere" / "a.wav")
    (tmp_path / "b.wav").mkdir()
    with pytest.raises(ValueError, match=r"b\.wav cannot be written"):
        playback.save_sound(answer(), tmp_path / "b.wav")


def test_numbers(tmp_path: Path) -> None:
    for number in (1, 2):
        path = playback.next_free(tmp_path / "a.wav")
        assert path == tmp_path / f"a-{number}.wav"
        path.write_bytes(b"")


def test_players(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert playback.find_player() is None
    heard = tmp_path / "heard.wav"
    program(tmp_path / "ffplay", "raise SystemExit(3)")
    copy = f"pathlib.Path({str(heard)!r}).write_bytes(pathlib.Path(sys.argv[-1]).read_bytes())"
    program(tmp_path / "aplay", copy)
    player = playback.find_player() or []
    assert player == [str(tmp_path / "aplay"), "-q"]
    playback.play(answer(2400), player)
    with wave.open(str(heard)) as file:
        assert (file.getframerate(), file.getnframes()) == (24000, 2400)
    program(tmp_path / "aplay", "sys.exit('no sound card')")
    with pytest.raises(ValueError, match=r"aplay could not play the sound \(no sound card\)"):
        playback.play(answer(), player)
    with pytest.raises(ValueError, match=r"ffplay could not play the sound \(exit status 3\)"):
        playback.play(answer(), [str(tmp_path / "ffplay")])


def program(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\nimport sys, pathlib\n{body}\n")
    path.chmod(0o755)
