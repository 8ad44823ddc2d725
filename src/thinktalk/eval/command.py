"""The command line of `thinktalk eval`. No torch, so that --help stays quick."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thinktalk.command import add_model

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SUITES = ("playroom",)
# eval.run.groups
GROUPS = tuple(
    "typed spoken unseen said seen heard watched when aloud look speech pace vocoder live".split()
)


def add_eval(commands: "Commands", *, run: Callable[[argparse.Namespace], None]) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="measure a model on held-out cases",
        description="Measures a model on held-out cases and prints a table. playroom: questions "
        "typed and spoken, about pictures, sounds and films, what holds sound and sight together, "
        "how well an independent recogniser understands the replies, and the live engine.",
    )
    evaluate.add_argument("suite", metavar="SUITE", choices=SUITES, help=", ".join(SUITES))
    evaluate.add_argument(
        "--cases", metavar="N", type=int, default=200, help="per group of rows (default: 200)"
    )
    evaluate.add_argument(
        "--only",
        metavar="GROUP",
        action="append",
        choices=GROUPS,
        help=f"only these rows; repeatable ({', '.join(GROUPS)})",
    )
    evaluate.add_argument(
        "--out", metavar="DIR", type=Path, help="folder for results.md and results.json"
    )
    add_model(evaluate)
    evaluate.set_defaults(run=run)
