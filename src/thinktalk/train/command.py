"""The command line of `thinktalk train`. No torch, so that --help stays quick."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Run = Callable[[argparse.Namespace], None]

# The stages of train.recipe: what they learn, and the finished stages that they build on.
STAGES = {
    "tokenizer": ("speech tokenizer: mel to codec ids and back", ()),
    "typed": ("the Thinker's text decoder: typed questions", ()),
    "align": ("audio encoder: recordings towards the embeddings of their words", ("typed",)),
    "thinker": ("the whole Thinker: typed and spoken questions to text", ("align",)),
    "dit": ("DiT: codec ids and a voice to mel", ("tokenizer",)),
    "talker": ("Talker: answers to codec ids", ("tokenizer", "thinker")),
    "vocoder": ("vocoder: mel to wave", ()),
}
TRAINING = """\
A run folder holds one folder per stage: checkpoints (everything that training needs to go on,
written every minute, the last two) and log.jsonl (the curves). A stage may be interrupted at any
moment, by Ctrl-C or by --minutes, and the same command continues it exactly where its last
checkpoint was written: that is a leg. What is finished is not done again.

`thinktalk train spark` does everything: the data, all stages, the finished checkpoint. Stage by
stage it is `train data` first, then every stage, then `train spark`, which finds all stages done
and puts the checkpoint together.
"""


def add_train(
    commands: "Commands", *, spark: Run, data: Run, cases: Run, stage: Run, plot: Run
) -> None:
    """What is called for everything, for the data, for a set of cases, for a single stage and for
    the curves."""
    train = commands.add_parser(
        "train",
        help="train spark from nothing, as a whole or stage by stage",
        description="Trains spark from nothing: as a whole, or stage by stage.",
        epilog=TRAINING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = train.add_subparsers(dest="stage", required=True, metavar="STAGE")
    whole = add_stage(stages, "spark", "everything: data, all stages, the finished checkpoint")
    whole.add_argument("--out", required=True, type=Path, help="folder of the checkpoint")
    whole.set_defaults(run=spark)
    only_data = add_stage(stages, "data", "only the data: speech, questions, the text tokenizer")
    only_data.set_defaults(run=data)
    add_cases(stages).set_defaults(run=cases)
    for name, (what, earlier) in STAGES.items():
        builds_on = f" (builds on {' and '.join(earlier)})" if earlier else ""
        one = add_stage(stages, name, what + builds_on)
        one.add_argument(
            "--minutes", type=float, default=math.inf, help="end this leg after so many minutes"
        )
        one.set_defaults(run=stage)
    curves = stages.add_parser("plot", help="draw the curves of all stages")
    curves.add_argument(
        "--run", dest="run_folder", required=True, type=Path, help="folder of the run"
    )
    curves.add_argument("--out", required=True, type=Path, help="picture, such as curves.png")
    curves.set_defaults(run=plot)


def add_cases(stages: "Commands") -> argparse.ArgumentParser:
    what = "playroom cases with their pictures, sounds and films, as JSONL and media files"
    cases = stages.add_parser(
        "cases",
        help=what,
        description=f"Writes {what}: a training set in the form that every stage reads. "
        "Interrupted, the same command continues it; with more --cases it adds to it.",
    )
    cases.add_argument("--out", required=True, type=Path, help="folder of the set")
    cases.add_argument("--cases", required=True, metavar="N", type=int, help="how many")
    cases.add_argument(
        "--split", choices=("train", "test"), default="train", help="(default: train)"
    )
    cases.add_argument(
        "--tasks", metavar="NAMES", default="", help="only these, comma between (default: all)"
    )
    cases.add_argument("--seed", metavar="N", type=int, default=0, help="(default: 0)")
    cases.add_argument(
        "--voices", choices=("train", "unseen"), default="train", help="who asks (default: train)"
    )
    cases.add_argument(
        "--asked",
        choices=("typed", "spoken", "inside"),
        help="how, inside: in the film's sound track (default: mixed in training, else typed)",
    )
    cases.add_argument("--mute", action="store_true", help="leave out the speech of the replies")
    cases.add_argument(
        "--workers", metavar="N", type=int, default=os.cpu_count() or 1, help="(default: all cores)"
    )
    return cases


def add_stage(stages: "Commands", name: str, what: str) -> argparse.ArgumentParser:
    stage = stages.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=TRAINING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stage.add_argument("--data", required=True, type=Path, help="folder of the playroom's data")
    stage.add_argument(
        "--run", dest="run_folder", required=True, type=Path, help="folder of the run"
    )
    if name != "data":
        stage.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return stage
