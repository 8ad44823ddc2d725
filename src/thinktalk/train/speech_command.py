"""The command lines of `thinktalk train pairs` and `thinktalk voice`. No torch, as command.py."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Run = Callable[[argparse.Namespace], None]

PLAYROOM, WORDS, CODES = "playroom", "words", "codes"


def add_pairs(stages: "Commands") -> argparse.ArgumentParser:
    what = "pairs for talker-dpo: several spoken replies to every row, judged by a recogniser"
    pairs = stages.add_parser(
        "pairs",
        help=what,
        description=f"Makes {what}. The text is that of the row's last reply, or the model's own. "
        "OUT/pairs.jsonl holds the best and the worst reply of every row, OUT/summary.json the "
        "word error rate of all: with held-out rows this measures sampled speech.",
    )
    option = pairs.add_argument
    option("--data", metavar="FILE", nargs="+", required=True, help="rows: .jsonl, .json, .tar")
    option("--out", required=True, type=Path, help="folder of candidates and pairs")
    option("--model", default="spark", help="whose speech it is (default: spark)")
    option("--device", default="cpu", help="cpu or cuda (default: cpu)")
    option("--dtype", help=argparse.SUPPRESS)
    option("--rows", metavar="N", type=int, help="only the first (default: all)")
    option("--samples", metavar="N", type=int, default=6, help="replies to a row (default: 6)")
    option("--temperature", metavar="T", type=float, default=0.9, help="(default: 0.9)")
    option("--seed", metavar="N", type=int, default=0, help="(default: 0)")
    option(
        "--recogniser",
        metavar="WHO",
        default=PLAYROOM,
        help=f"{PLAYROOM}: pocketsphinx with the playroom's words (default); {WORDS}: pocketsphinx "
        f"with the words of the rows; {CODES}: the reader of the checkpoint's codec ids (`train "
        "reader`), which needs no sound; else a command, which gets a WAV file as its last "
        "argument and writes its words to stdout",
    )
    option("--pairs", metavar="N", type=int, default=1, help="at most, of a row (default: 1)")
    return pairs


def add_voice(commands: "Commands", *, run: Run) -> None:
    voice = commands.add_parser(
        "voice",
        help="add, list and remove the voices of a checkpoint",
        description="Adds a voice to a checkpoint from a recording, lists them, removes one.",
    )
    actions = voice.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser(
        "add",
        help="a voice from a recording",
        description="Adds a voice from a recording of one speaker, 4 s or more, undisturbed. It "
        "speaks at once; `thinktalk train talker-voice` teaches the Talker how it speaks.",
    )
    new.add_argument("name", metavar="NAME")
    new.add_argument("recording", metavar="FILE", help="a recording (.wav, .flac, .mp3, ...)")
    new.add_argument(
        "--like", metavar="VOICE", help="that it resembles most (default: the nearest)"
    )
    new.add_argument(
        "--cond",
        metavar="FILE.npy",
        type=Path,
        help="its vector, for official checkpoints, whose speaker network is unknown (default: "
        "that of the voice it resembles)",
    )
    gone = actions.add_parser("remove", help="remove a voice")
    gone.add_argument("name", metavar="NAME")
    shown = actions.add_parser("list", help="list the voices")
    for action in (new, gone, shown):
        action.add_argument("--model", default="spark", help="the checkpoint (default: spark)")
        if action is not shown:
            action.add_argument(
                "--out", type=Path, help="write a copy here (default: change the checkpoint)"
            )
    voice.set_defaults(run=run)
