"""The sound of a reply, to a file in the format that its name asks for, or to a player."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from thinktalk.generate import Answer
from thinktalk.media.encode import FORMATS, encode

# Programs that play a WAV file, and what keeps them quiet; the first that is installed is taken.
PLAYERS = {
    "paplay": (),
    "aplay": ("-q",),
    "afplay": (),
    "ffplay": ("-nodisp", "-autoexit", "-loglevel", "error"),
}


def save_sound(answer: Answer, path: Path) -> None:
    """Raises ValueError where nothing was spoken, and for a path that cannot be written."""
    if not len(answer.audio):
        raise ValueError(f"{path} is not written: nothing was spoken")
    sound = encode(answer.audio, format=sound_format(path), sample_rate=answer.sample_rate)
    write_file(path, sound)


def sound_format(path: Path) -> str:
    """The format that the file's name asks for; ValueError if it, or its folder, does not exist."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise ValueError(f"{path}: sound is saved by the name's ending; give one of {endings}")
    if not path.expanduser().parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; make it first")
    return suffix


def next_free(path: Path) -> Path:
    """reply.wav -> reply-1.wav, or the first number that no file has."""
    number = 1
    while (free := path.with_stem(f"{path.stem}-{number}").expanduser()).exists():
        number += 1
    return free


def find_player() -> list[str] | None:
    """The command that plays a file whose name is added to it, None where there is none."""
    for name, options in PLAYERS.items():
        if program := shutil.which(name):
            return [program, *options]
    return None


def play(answer: Answer, player: list[str]) -> None:
    """Returns when the sound has been heard; raises ValueError if the player fails."""
    with tempfile.TemporaryDirectory(prefix="thinktalk-") as folder:
        path = Path(folder) / "reply.wav"
        save_sound(answer, path)
        # the player must not read what the user types meanwhile
        done = subprocess.run([*player, path], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise ValueError(f"{Path(player[0]).name} could not play the sound ({reason})")


def write_file(path: Path, content: bytes) -> None:
    try:
        path.expanduser().write_bytes(content)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror})") from error
