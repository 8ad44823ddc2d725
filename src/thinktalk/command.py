"""The command line of `thinktalk chat`, and what several commands share. No torch, so that --help
stays quick."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DTYPES = ("float32", "bfloat16", "float16")


def add_chat(commands: "Commands", *, run: Callable[[argparse.Namespace], None]) -> None:
    chat = commands.add_parser(
        "chat",
        help="ask with words, sound, pictures, video; or converse in the terminal",
        description="Answers words and media; without any, it holds a conversation in the "
        "terminal (/help there lists its commands). The answer is written to stdout while it is "
        "made, everything else to stderr.",
    )
    chat.add_argument("parts", nargs="*", help="words, and media by path or URL, in order")
    chat.add_argument(
        "--speak",
        metavar="FILE",
        type=Path,
        help="save the spoken answer here (.wav, .mp3, .flac, ...); in a conversation every reply "
        "gets a number: FILE-1.wav, FILE-2.wav, ... (default there: in a temporary folder)",
    )
    chat.add_argument(
        "--play", action="store_true", help="play the answer with paplay, aplay, afplay or ffplay"
    )
    chat.add_argument(
        "--text-only", action="store_true", help="no speech, and not the system prompt for speech"
    )
    chat.add_argument("--voice", metavar="NAME", help="who speaks (default: Chelsie, or the first)")
    chat.add_argument("--system", metavar="TEXT", help="system prompt (default: the official one)")
    chat.add_argument(
        "--exact",
        action="store_true",
        help="compute as the reference does, not in the windows of a live conversation; slower",
    )
    chat.add_argument(
        "--max-text-tokens", metavar="N", type=int, default=1024, help="(default: 1024)"
    )
    chat.add_argument(
        "--max-codec-ids", metavar="N", type=int, default=4096, help="50 a second (default: 4096)"
    )
    chat.add_argument("--seed", metavar="N", type=int, default=0, help="of the voice (default: 0)")
    add_model(chat)
    chat.set_defaults(run=run)


def add_model(command: argparse._ActionsContainer) -> None:
    """command: a parser, or a group of its options."""
    command.add_argument(
        "--model",
        default="spark",
        help="spark, a folder in the official layout, or a hub id (default: spark)",
    )
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    command.add_argument(
        "--dtype", choices=DTYPES, help="of Thinker and Talker (default: as stored; small on a "
        "CPU: float32)",
    )  # fmt: skip
