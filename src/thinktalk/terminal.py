"""`thinktalk chat`: words and media in, text on stdout while it is written, the sound to a file.

`answer_once` takes one question from the command line, `converse` is a conversation of many turns.
Only answers go to stdout; the prompt, notes and errors stand beside them on stderr.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from thinktalk.generate import Answer, generate
from thinktalk.media.chat import SPEECH_SYSTEM_PROMPT
from thinktalk.media.source import medium_of, open_source
from thinktalk.options import DEFAULT_VOICE
from thinktalk.playback import find_player, next_free, play, save_sound, sound_format, write_file
from thinktalk.weights import LoadedModel

try:
    import readline  # editing, history and completion; not on every system
except ImportError:
    readline = None

COMMANDS = {
    "/voice": "who can speak; /voice NAME: who speaks from now on",
    "/system": "the system prompt; /system TEXT: another one from now on",
    "/new": "forget the conversation (also when it has grown too long)",
    "/save": "/save FILE.wav (or .mp3, ...): the last reply's sound; /save FILE.json: all messages",
    "/help": "these lines",
    "/quit": "the end, as Ctrl-D; Ctrl-C stops a reply",
}
# A word of a line: quoted, or without spaces (a backslash keeps the next character in the word).
WORD = re.compile(r""""(?P<double>[^"]+)"|'(?P<single>[^']+)'|(?P<bare>(?:\\.|\S)+)""")
LEADING, TRAILING = "(\"'", "?!.,;:)\"'"  # signs that may stand around a path in a sentence
# What a terminal would obey instead of showing; a model may write any byte.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

Part = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the options of `thinktalk chat` say."""

    voice: str | None = None  # None: DEFAULT_VOICE, or the checkpoint's first
    system: str | None = None
    exact: bool = False
    seed: int = 0
    max_text_tokens: int = 1024
    max_codec_ids: int = 4096
    text_only: bool = False
    speak: Path | None = None  # where the sound goes; in a conversation with numbers added
    play: bool = False

    def __post_init__(self) -> None:
        if self.speak is not None:
            sound_format(self.speak)


def answer_once(model: LoadedModel, parts: list[Part], settings: Settings) -> None:
    """Answers one question (`parts_of_words`); raises ValueError for what it cannot do."""
    conversation = Conversation(model, settings)
    player = _player(settings)
    speak = bool(settings.speak or player)
    if speak and conversation.voice is None:
        raise ValueError(f"{model.folder} has no voices (spk_dict.pt), so it cannot speak")
    answer = conversation.ask(parts, speak=speak)
    if settings.speak is not None:
        save_sound(answer, settings.speak)
    if player is not None and len(answer.audio):
        play(answer, player)


def converse(model: LoadedModel, settings: Settings) -> None:
    """Reads lines until the end of the input; an error costs one line, never the conversation."""
    with tempfile.TemporaryDirectory(prefix="thinktalk-") as downloads:
        terminal = Terminal(model, settings, downloads=Path(downloads))
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            _complete_on_tab()
            note("Type a question; it may name files and URLs of media. /help lists the commands.")
        while True:
            try:
                line = _read(prompt="> " if is_terminal else "")
                if line is None or not terminal.take(line):
                    return
            except KeyboardInterrupt:
                note("\n(stopped; Ctrl-D ends)")
            except ValueError as error:
                note(str(error))
            except (RuntimeError, OSError, MemoryError) as error:  # out of memory, disk full, ...
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                note(f"that failed ({reason}); the conversation goes on without it")


class Conversation:
    """Turns said so far, and the next one. Every answer is shown while it is written."""

    def __init__(self, model: LoadedModel, settings: Settings):
        self.model, self.settings = model, settings
        self.system = settings.system
        self.voice = choose_voice(model, settings.voice)
        self.history: list[dict[str, Any]] = []

    def ask(self, parts: list[Part], *, speak: bool) -> Answer:
        """Answers and remembers both; after an interruption, what had been written until then."""
        messages = [*self.history, {"role": "user", "content": parts}]
        written: list[str] = []

        def write(piece: str) -> None:
            written.append(piece)
            show(piece)

        system = self.system
        if system is None and not self.settings.text_only:
            system = SPEECH_SYSTEM_PROMPT  # also where nobody listens: the text stays the same
        try:
            return generate(
                self.model,
                messages,
                voice=self.voice or "",
                speak=speak and self.voice is not None,
                system=system,
                exact=self.settings.exact,
                seed=self.settings.seed,
                max_text_tokens=self.settings.max_text_tokens,
                max_codec_ids=self.settings.max_codec_ids,
                on_text=write,
            )
        finally:
            if written:
                show("\n")
                reply = {"role": "assistant", "content": "".join(written)}
                self.history = [*messages, reply]


class Terminal:
    """What a line does: a command, or a turn of the conversation and its sound."""

    def __init__(self, model: LoadedModel, settings: Settings, *, downloads: Path):
        self.conversation = Conversation(model, settings)
        self.settings, self.downloads = settings, downloads
        self.speak = not settings.text_only and self.conversation.voice is not None
        self.player = _player(settings) if self.speak else None
        self.sounds = settings.speak
        self.last: Answer | None = None
        if self.conversation.voice is None and not settings.text_only:
            note(f"{model.folder} has no voices (spk_dict.pt): the answers are text only.")

    def take(self, line: str) -> bool:
        """False for /quit; raises ValueError for what is wrong with the line."""
        command, _, argument = line.strip().partition(" ")
        if command == "/quit":
            return False
        if re.fullmatch(r"/[a-z]+", command):
            self.obey(command, argument.strip())
        elif command:
            self.answer(line)
        return True

    def answer(self, line: str) -> None:
        self.last = None
        self.last = self.conversation.ask(
            self.with_downloads(parts_of_line(line)), speak=self.speak
        )
        if len(self.last.audio):
            self.deliver(self.last)

    def obey(self, command: str, argument: str) -> None:
        conversation = self.conversation
        if command == "/help":
            note("\n".join(f"{name:8} {what}" for name, what in COMMANDS.items()))
        elif command == "/new":
            conversation.history = []
            note("(a new conversation)")
        elif command == "/voice":
            if argument:
                conversation.voice = choose_voice(conversation.model, argument)
            note(_voices_line(conversation))
        elif command == "/system":
            conversation.system = argument or conversation.system
            note(f"system prompt: {conversation.system or '(the official one)'}")
        elif command == "/save":
            self.save(Path(argument).expanduser() if argument else None)
        else:
            raise ValueError(f"{command} is no command; /help lists them")

    def save(self, path: Path | None) -> None:
        if path is None:
            raise ValueError("/save needs the name of a file, such as answer.wav or talk.json")
        if path.suffix.lower() == ".json":
            messages = list(self.conversation.history)
            if self.conversation.system is not None:
                messages.insert(0, {"role": "system", "content": self.conversation.system})
            text = json.dumps(messages, indent=2, ensure_ascii=False)
            write_file(path, (text + "\n").encode("utf-8", "replace"))
        elif self.last is None:
            raise ValueError("there is no whole reply yet whose sound could be saved")
        else:
            save_sound(self.last, path)
        note(f"(saved in {path})")

    def deliver(self, answer: Answer) -> None:
        """Plays the sound if asked for; keeps it in a file if not, or if it has a place to go."""
        if self.player is None or self.settings.speak is not None:
            if self.sounds is None:
                self.sounds = Path(tempfile.mkdtemp(prefix="thinktalk-")) / "reply.wav"
            path = next_free(self.sounds)
            save_sound(answer, path)
            note(f"(sound: {path}, {len(answer.audio) / answer.sample_rate:.1f} s)")
        if self.player is not None:
            play(answer, self.player)

    def with_downloads(self, parts: list[Part]) -> list[Part]:
        """Fetches media from the network once, although every later turn reads them again."""
        local = []
        for part in parts:
            kind = part["type"]
            url = urlsplit(part[kind]) if kind != "text" else None
            if url is not None and url.scheme in ("http", "https"):
                with open_source(part[kind]) as opened:
                    number = len(list(self.downloads.iterdir())) + 1
                    path = self.downloads / f"{number}-{Path(url.path).name}"
                    path.write_bytes(opened.file.read())
                part = {"type": kind, kind: str(path)}
            local.append(part)
        return local


# ---- from words and lines to parts of a message


def parts_of_words(words: Sequence[str]) -> list[Part]:
    """Every word is a medium by its name or text; neighbouring texts are joined by spaces.

    Raises ValueError for files that are missing, unreadable or no media by their name.
    """
    parts: list[Part] = []
    for word in words:
        kind = medium_of(word) or "text"
        if kind == "text":
            _refuse_other_files(word)
        elif not word.startswith(("http://", "https://")):
            with open_source(word):  # a big model is not loaded for a mistyped name
                pass
        if kind == "text" and parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += f" {word}"
        else:
            parts.append({"type": kind, kind: word})
    return parts


def parts_of_line(line: str) -> list[Part]:
    """Media are words of the line, quoted or with escaped spaces; what is between them is text.

    Signs of the sentence may stand around a path: "what is in picture.png?". Raises ValueError for
    files that are no media by their name.
    """
    parts: list[Part] = []
    start = place = 0
    while word := WORD.search(line, place):
        quoted = word["double"] or word["single"]
        before, path, after = ("", quoted, "") if quoted else _path_in(word["bare"])
        kind = medium_of(path)
        if kind:
            text = _text(line[start : word.start()] + before)
            parts += [text, {"type": kind, kind: path}]
            start = word.end() - len(after)
        elif not quoted:
            _refuse_other_files(path)
        # words inside quotes that name no medium are looked at one by one
        place = word.start() + 1 if quoted and not kind else word.end()
    parts.append(_text(line[start:]))
    return [part for part in parts if part.get("text") != ""]


def _text(text: str) -> Part:
    return {"type": "text", "text": text.strip()}


def _path_in(word: str) -> tuple[str, str, str]:
    """A word without its escapes; what of it belongs to the sentence stands before and after."""
    plain = re.sub(r"\\(.)", r"\1", word)
    head = plain.lstrip(LEADING)
    path = head.rstrip(TRAILING)
    if medium_of(path) and not _is_file(plain) and ("://" in path or _is_file(path)):
        return plain[: len(plain) - len(head)], path, head[len(path) :]
    return "", plain, ""


def _refuse_other_files(word: str) -> None:
    if ("." in word or os.sep in word) and _is_file(word):
        raise ValueError(
            f"{word} is a file, but its name does not end like that of sound, picture or video; "
            "rename it, or write down what it says"
        )


def _is_file(word: str) -> bool:
    return os.path.isfile(os.path.expanduser(word))


# ---- voices


def choose_voice(model: LoadedModel, name: str | None) -> str | None:
    """The voice of that name; without one the default, None where the model cannot speak."""
    if name is not None and name not in model.voices:
        known = ", ".join(model.voices) or "none: the checkpoint has no spk_dict.pt"
        raise ValueError(f"unknown voice {name!r}; this model has {known}")
    if name is not None or not model.voices:
        return name
    return DEFAULT_VOICE if DEFAULT_VOICE in model.voices else next(iter(model.voices))


def _voices_line(conversation: Conversation) -> str:
    known = ", ".join(conversation.model.voices) or "no voices"
    return f"voice: {conversation.voice} (this model has {known})"


def _player(settings: Settings) -> list[str] | None:
    player = find_player() if settings.play else None
    if settings.play and player is None:
        note("No player is installed (paplay, aplay, afplay or ffplay): the sound is not played.")
    return player


# ---- the terminal


def show(piece: str) -> None:
    if sys.stdout.isatty():
        piece = CONTROL.sub("", piece)
    print(piece, end="", flush=True)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read(*, prompt: str) -> str | None:
    """The next line, None at the end of the input."""
    if not sys.stdout.isatty():  # the prompt would stand among the answers
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    try:
        return input(prompt)
    except EOFError:
        if sys.stdin.isatty():
            note("")
        return None


def _complete_on_tab() -> None:
    if readline is None:
        return
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    readline.set_completer_delims(" \t\n\"'")
    readline.set_completer(lambda text, state: [*completions(text), None][state])


def completions(text: str) -> list[str]:
    """Commands and files that begin with the text; spaces in names are escaped."""
    typed = os.path.expanduser(text.replace("\\ ", " "))
    files = [path + os.sep * os.path.isdir(path) for path in sorted(glob(escape(typed) + "*"))]
    commands = [command for command in COMMANDS if text and command.startswith(text)]
    return commands + [path.replace(" ", "\\ ") for path in files]
