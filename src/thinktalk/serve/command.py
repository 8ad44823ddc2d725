"""The command lines of `thinktalk serve` and `thinktalk talk`. No torch, so that --help stays
quick."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thinktalk.command import add_model

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

REMOTE = ("off", "public", "any")  # serve.fetch.Remote
LISTS = ("api_key", "allow_origin", "limit", "ice_server")  # options that may be repeated


def add_serve(commands: "Commands", *, run: Callable[[argparse.Namespace], None]) -> None:
    serve = commands.add_parser(
        "serve",
        help="a page to talk to, and OpenAI's chat, audio and Realtime dialects",
        description="Serves a page to talk to at / and OpenAI's chat, audio and Realtime dialects "
        "under /v1 (docs/protocol.md). Every option can be set by environment, too: --api-key by "
        "THINKTALK_API_KEY, and so on; several values are separated by commas.",
    )
    option = serve.add_argument
    add_model(serve)
    option("--host", default="127.0.0.1", help="(default: 127.0.0.1, only this machine)")
    option("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    option("--api-key", metavar="KEY", action="append", help="clients must know it; repeatable")
    option("--max-sessions", metavar="N", type=int, default=8, help="at a time (default: 8)")
    foreign = "pages from there may use the server, such as https://example.org; repeatable"
    option("--allow-origin", metavar="URL", action="append", help=foreign)
    option(
        "--remote-media",
        choices=REMOTE,
        default="public",
        help="media by URL: off, from the public internet, or from any address (default: public)",
    )
    option(
        "--limit",
        metavar="NAME=NUMBER",
        action="append",
        help="changes a limit, such as video_s=60 (names: docs/protocol.md); repeatable",
    )
    option(
        "--ice-server",
        metavar="URL",
        action="append",
        help="for WebRTC, stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT; repeatable",
    )
    for name in vars(serve.parse_args([])):
        if value := os.environ.get(f"THINKTALK_{name.upper()}"):
            serve.set_defaults(**{name: value.split(",") if name in LISTS else value})
    serve.set_defaults(run=run)


def add_talk(commands: "Commands", *, run: Callable[[argparse.Namespace], None]) -> None:
    talk = commands.add_parser(
        "talk",
        help="play a recording into a running server, as a microphone would",
        description="Plays a recording into a running server in real time, prints what both sides "
        "say and how long the answer takes, and saves the answer. With --sessions N it does so N "
        "times at once and prints the latencies of all.",
    )
    option = talk.add_argument
    option("recording", metavar="FILE", help="a recording with a question")
    option("--url", default="http://127.0.0.1:8000", help="(default: http://127.0.0.1:8000)")
    option("--api-key", metavar="KEY", default=os.environ.get("THINKTALK_API_KEY", ""))
    option("--out", metavar="FILE", type=Path, help="save the answer (.wav, .mp3, ...)")
    option("--voice", metavar="NAME", help="who answers (default: the server's)")
    option("--push-to-talk", action="store_true", help="end the turn with the recording")
    option("--sessions", metavar="N", type=int, default=1, help="at once (default: 1)")
    option("--turns", metavar="N", type=int, default=1, help="in each session (default: 1)")
    talk.set_defaults(run=run)
