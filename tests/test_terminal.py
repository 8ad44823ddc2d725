"""`thinktalk chat`: reading of lines and words, turns, sound, and a conversation on a terminal."""

import json
import os
import pty
import re
import select
import signal
import sys
import threading
import wave
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import thinktalk
from thinktalk import terminal
from thinktalk.generate import Answer
from thinktalk.terminal import Conversation, Settings, Terminal, parts_of_line, parts_of_words
from thinktalk.weights import save

ROOT = Path(__file__).parents[1]


# ---- lines and words


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(path: str) -> dict[str, str]:
    return {"type": "image", "image": path}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files."""
    for name in ("a.png", "my picture.png", "notes.txt", "b.wav"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("  what's 3 + 4?  ", [text("what's 3 + 4?")]),
        ("a.png", [image("a.png")]),
        ("what is in a.png?", [text("what is in"), image("a.png"), text("?")]),
        ("this (a.png) is", [text("this ("), image("a.png"), text(") is")]),
        ("./a.png ~/a.png.", [image("./a.png"), text("~/a.png.")]),
        ('"my picture.png" and\ta.png', [image("my picture.png"), text("and"), image("a.png")]),
        (r"it's my\ picture.png", [text("it's"), image("my picture.png")]),
        ("say 'a.png is red'", [text("say '"), image("a.png"), text("is red'")]),
        ("missing.png", [image("missing.png")]),
        ("no .png files, no png.", [text("no .png files, no png.")]),
        ("http://x.org/c.png?q=1 ok", [image("http://x.org/c.png?q=1"), text("ok")]),
        ("at http://x.org/c.png, ok", [text("at"), image("http://x.org/c.png"), text(", ok")]),
        ("hear b.wav", [text("hear"), {"type": "audio", "audio": "b.wav"}]),
        ("   ", []),
    ],
)  # fmt: skip
def test_parts_of_line(files: Path, line: str, parts: list[dict[str, str]]) -> None:
    assert parts_of_line(line) == parts


def test_parts_of_words(files: Path) -> None:
    words = ["what", "is this?", "a.png", "http://x.org/c.png", "and", "b"]
    assert parts_of_words(words) == [
        text("what is this?"), image("a.png"), image("http://x.org/c.png"), text("and b"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"missing\.png does not exist"):
        parts_of_words(["missing.png"])


def test_other_files_are_refused(files: Path) -> None:
    for parts in (parts_of_words, lambda words: parts_of_line(words[0])):
        with pytest.raises(ValueError, match=r"notes\.txt is a file, but"):
            parts(["notes.txt"])


def test_completions(files: Path) -> None:
    (files / "folder").mkdir()
    assert terminal.completions("my") == ["my\\ picture.png"]
    assert terminal.completions("my\\ pic") == ["my\\ picture.png"]
    assert terminal.completions("fo") == ["folder/"]
    assert terminal.completions("/vo") == ["/voice"]


# ---- turns, with a reply that needs no network


class Script:
    """Stands for generate: says the given replies, None being an interruption in the middle."""

    def __init__(self, *replies: str | None, samples: int = 240):
        self.replies, self.calls = list(replies), []
        self.samples = samples

    def __call__(self, model: Any, messages: Any, *, on_text: Callable, **options: Any) -> Answer:
        self.calls.append(SimpleNamespace(messages=messages, **options))
        reply = self.replies.pop(0)
        on_text("so " if reply is None else reply)
        if reply is None:
            raise KeyboardInterrupt
        sound = np.full(self.samples if options["speak"] else 0, 0.5, np.float32)
        return Answer(reply, sound, [1], [2], [])


def model(*voices: str) -> Any:
    return SimpleNamespace(voices=dict.fromkeys(voices), folder=Path("checkpoint"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    def install(*replies: str | None) -> Script:
        made = Script(*replies)
        monkeypatch.setattr(terminal, "generate", made)
        return made

    return install


def test_turns_are_remembered(script: Callable[..., Script]) -> None:
    said = script("one", None, "three")
    conversation = Conversation(model("Ethan", "Chelsie"), Settings())
    ask = partial(conversation.ask, speak=True)
    ask([text("a")])
    with pytest.raises(KeyboardInterrupt):
        ask([text("b")])
    ask([text("c")])
    roles = [(m["role"], m["content"]) for m in said.calls[-1].messages]
    assert roles == [
        ("user", [text("a")]), ("assistant", "one"),
        ("user", [text("b")]), ("assistant", "so "),
        ("user", [text("c")]),
    ]  # fmt: skip


def test_a_refused_turn_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, script: Callable[..., Script]
) -> None:
    def refuse(*_: Any, **__: Any) -> Answer:
        raise ValueError("no")

    conversation = Conversation(model(), Settings())
    monkeypatch.setattr(terminal, "generate", refuse)
    with pytest.raises(ValueError, match="no"):
        conversation.ask([text("a")], speak=False)
    said = script("fine")
    conversation.ask([text("b")], speak=False)
    assert [m["content"] for m in said.calls[0].messages] == [[text("b")]]


def test_voices(script: Callable[..., Script]) -> None:
    assert terminal.choose_voice(model("Ethan", "Chelsie"), None) == "Chelsie"
    assert terminal.choose_voice(model("Anna", "Ben"), None) == "Anna"
    assert terminal.choose_voice(model(), None) is None
    with pytest.raises(ValueError, match="unknown voice 'X'; this model has Anna"):
        terminal.choose_voice(model("Anna"), "X")


def test_commands(
    script: Callable[..., Script], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = script("one", "two")
    sounds = tmp_path / "reply.flac"
    lines = Terminal(model("Chelsie", "Ethan"), Settings(speak=sounds), downloads=tmp_path)
    assert lines.take("first") and lines.take("")
    for line in ("/voice Ethan", "/system be kind", f"/save {tmp_path}/talk.json", "/help"):
        assert lines.take(line)
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [m["content"] for m in saved] == ["be kind", [text("first")], "one"]
    lines.take("/new")
    lines.take("second")
    assert len(said.calls[1].messages) == 1
    assert (said.calls[1].voice, said.calls[1].system) == ("Ethan", "be kind")
    assert (tmp_path / "reply-1.flac").read_bytes()[:4] == b"fLaC"
    assert (tmp_path / "reply-2.flac").exists()
    lines.take(f"/save {tmp_path}/last.wav")
    with wave.open(str(tmp_path / "last.wav")) as file:
        assert (file.getframerate(), file.getnframes()) == (24000, 240)
    for line in ("/foo", "/voice Bob", "/save", "/save x.txt"):
        with pytest.raises(ValueError):
            lines.take(line)
    assert not lines.take("/quit")
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n"  # the commands answer on stderr
    assert "Ctrl-C" in err and str(tmp_path / "reply-2.flac") in err


def test_without_voices(script: Callable[..., Script], capsys: pytest.CaptureFixture[str]) -> None:
    said = script("one")
    lines = Terminal(model(), Settings(), downloads=Path())
    lines.take("a")
    assert not said.calls[0].speak
    assert "text only" in capsys.readouterr().err
    with pytest.raises(ValueError, match="cannot speak"):
        terminal.answer_once(model(), [text("a")], Settings(speak=Path("a.wav")))


def test_text_only_makes_no_sound(script: Callable[..., Script]) -> None:
    said = script("one", "two")
    Terminal(model("Chelsie"), Settings(text_only=True), downloads=Path()).take("a")
    Terminal(model(), Settings(), downloads=Path()).take("a")
    assert not said.calls[0].speak
    # otherwise the same words whether or not there is speech
    assert [call.system for call in said.calls] == [None, terminal.SPEECH_SYSTEM_PROMPT]


def test_media_are_downloaded_once(
    script: Callable[..., Script], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"picture")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    said = script("one", "two")
    lines = Terminal(model(), Settings(), downloads=tmp_path)
    lines.take(f"see http://127.0.0.1:{server.server_port}/a.png")
    lines.take("again")
    server.shutdown()
    server.server_close()
    assert asked == ["/a.png"]
    local = said.calls[1].messages[0]["content"][1]["image"]
    assert Path(local).read_bytes() == b"picture" and local.endswith("a.png")


# ---- a real terminal


def test_terminals_are_shown_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.show("a\x1b[2J\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.show("b\x1b[2J\tü\n")
    assert capsys.readouterr().out == "a\x1b[2J\nb[2J\tü\n"


class Screen:
    """`thinktalk chat` in a pseudo-terminal: what a user types and sees."""

    def __init__(self, *arguments: str):
        self.seen = ""
        self.process, self.terminal = pty.fork()
        if not self.process:
            os.environ |= {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells ignore it in the background
            command = [sys.executable, "-m", "thinktalk", "chat", *arguments]
            os.execv(sys.executable, command)

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def until(self, pattern: str) -> str:
        """What appeared since the last call, up to the pattern."""
        while not (found := re.search(pattern, self.seen)):
            piece = self._read()
            assert piece, f"ended without {pattern!r}: {self.seen}"
            self.seen += piece
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def interrupt(self, pattern: str) -> None:
        """Ctrl-C at the prompt until the pattern appears: Python's readline does not notice one
        that comes between its prompt and its wait for keys."""
        while not re.search(pattern, self.seen):
            self.type("\x03")
            while select.select([self.terminal], [], [], 2.0)[0]:
                piece = self._read()
                assert piece, f"ended without {pattern!r}: {self.seen}"
                self.seen += piece
        self.until(pattern)

    def exit_status(self) -> int:
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def _read(self) -> str:
        select.select([self.terminal], [], [])
        try:
            return os.read(self.terminal, 4096).decode(errors="replace")
        except OSError:  # the other side has gone
            return ""


@pytest.fixture
def talkative(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint whose replies never end by themselves, so that an interruption meets them."""
    model = thinktalk.load(tiny_checkpoint("7b"))
    with torch.no_grad():
        thinker = model.omni.thinker
        thinker.lm_head.weight[thinker.config.eos_token_id] = 0
    save(model, tmp_path / "talkative")
    return tmp_path / "talkative"


@pytest.fixture
def screen(talkative: Path) -> Iterator[Screen]:
    screen = Screen("--model", str(talkative), "--text-only", "--max-text-tokens", "20000")
    yield screen
    os.close(screen.terminal)


def test_conversation_in_a_terminal(screen: Screen, tmp_path: Path) -> None:
    talk = tmp_path / "talk.json"
    screen.until("/help.*\n> ")
    screen.type("nowhere.wav\n")
    screen.until(r"nowhere\.wav does not exist; check the path\r\n> ")
    screen.type("hello\n")
    screen.until("hello\r\n")
    while not screen.until(".").strip():
        pass
    screen.type("\x03")
    screen.until(r"\(stopped; Ctrl-D ends\)\r\n> ")
    screen.type(f"/save {talk}\n")
    screen.until(r"\(saved in .*\)\r\n> ")
    question, reply = json.loads(talk.read_text())
    assert question["content"] == [text("hello")] and reply["content"]
    screen.interrupt("stopped.*\n> ")
    screen.type("\x04")
    assert screen.exit_status() == 0
