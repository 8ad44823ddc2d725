"""The conversation of examples/: spark sees a picture, hears questions and is cut short."""

import re
import subprocess
import sys
import wave
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_conversation(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "conversation.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    turns = done.stdout.split("you speak\n")[1:]
    assert len(turns) == 4, done.stdout
    assert turns[0].startswith("i see a blue star.") and "[completed]" in turns[0]
    assert turns[1].startswith("it is blue.") and "[completed]" in turns[1]
    assert turns[2].startswith("one, two,")
    # the interruption may come when all is said, or while it is still being made
    assert re.search(r"\[you have heard \d+ ms of it: '(one.*)?'\]", turns[2] + turns[3])
    assert "two plus three is five." in turns[3]
    with wave.open(str(tmp_path / "conversation.wav")) as file:
        assert file.getnframes() > 4 * file.getframerate()
