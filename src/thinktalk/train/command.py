"""The command line of `thinktalk train`. No torch, so that --help stays quick."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktalk.train.speech_command import add_pairs

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Run = Callable[[argparse.Namespace], None]

# What the stages of train.tuning do to a checkpoint.
COURSES = {
    "align": "encoders towards the frozen text decoder: first their last layers, then all of them",
    "omni": "the whole Thinker: text, pictures, sounds, films, films with sound",
    "long": "as omni, on long rows, with less memory and more time",
    "sft": "the Thinker on conversations, all of it or by LoRA",
    "tokenizer": "speech tokenizer: mel to codec ids, by mel and recognition losses",
    "reader": "letters from codec ids: a quick ear for `train pairs`",
    "dit": "DiT: codec ids, a voice and a reference to mel",
    "vocoder": "vocoder: mel to wave, by spectral and adversarial losses",
    "talker": "the Talker: spoken replies, behind a frozen or (joint) learning Thinker",
    "talker-dpo": "the Talker on pairs of better and worse replies (`train pairs` makes them)",
    "talker-voice": "the Talker on several speakers",
}
# The stages of train.recipe and train.lessons: what they learn, and what must be finished before.
SPARK_STAGES = {
    "tokenizer": ("speech tokenizer: mel to codec ids and back", ()),
    "typed": ("the Thinker's text decoder: typed questions", ()),
    "align": ("audio encoder: recordings towards the embeddings of their words", ("typed",)),
    "thinker": ("the whole Thinker: typed and spoken questions to text", ("align",)),
    "letters": ("vision encoder: pictures, large letters among them", ("thinker",)),
    "seeing": ("vision encoder: pictures towards the embeddings of their names", ("letters",)),
    "dit": ("DiT: codec ids and a voice to mel", ("tokenizer",)),
    "talker": ("Talker: answers to codec ids", ("tokenizer", "thinker")),
    "vocoder": ("vocoder: mel to wave", ()),
    "omni": (
        "the whole Thinker on rows of all tasks",
        ("seeing", "talker", "dit", "vocoder"),
    ),
    "long": ("the same on rows packed to 8 192 tokens", ("omni",)),
    "sft": ("the same, slower", ("long",)),
    "reader": ("letters from codec ids, to rank replies by", ("sft",)),
    "speaking": ("the Talker behind what the Thinker has become", ("reader",)),
    "dpo": ("the Talker on pairs of its own replies", ("speaking",)),
    "voices": ("the Talker, both voices alike", ("dpo",)),
}
TRAINING = """\
A stage trains the checkpoint given by --model on the rows given by --data, and writes the complete
checkpoint to OUT/model. `spark` is the recipe of the shipped checkpoint, from nothing.

All may be interrupted at any moment, by Ctrl-C or by --minutes, and the same command continues
exactly where the last checkpoint was written (every minute; the last two are kept): that is a leg.
What is finished is not done again. With `torchrun -m thinktalk train ...` many processes train
together.
"""


def add_train(
    commands: "Commands",
    *,
    course: Run,
    new: Run,
    merge: Run,
    pairs: Run,
    spark: Run,
    data: Run,
    cases: Run,
    plot: Run,
) -> None:
    """What is called for a stage on rows, for a checkpoint to begin with, for merging an adapter,
    for pairs of replies, for spark, for its data, for a set of cases and for the curves."""
    train = commands.add_parser(
        "train",
        help="train a checkpoint on rows, or spark from nothing",
        description="Trains any checkpoint on rows of data, stage by stage, or spark from nothing.",
        epilog=TRAINING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stages = train.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, what in COURSES.items():
        add_course(stages, name, what).set_defaults(run=course)
    add_new(stages).set_defaults(run=new)
    add_merge(stages).set_defaults(run=merge)
    add_pairs(stages).set_defaults(run=pairs)
    add_spark(stages).set_defaults(run=spark)
    only_data = stages.add_parser("data", help="only the data of spark's recipe")
    add_folders(only_data)
    only_data.set_defaults(run=data)
    add_cases(stages).set_defaults(run=cases)
    curves = stages.add_parser("plot", help="draw the curves of all stages")
    curves.add_argument(
        "--run", dest="run_folder", required=True, type=Path, help="folder of the run"
    )
    curves.add_argument("--out", required=True, type=Path, help="picture, such as curves.png")
    curves.set_defaults(run=plot)


def add_course(stages: "Commands", name: str, what: str) -> argparse.ArgumentParser:
    course = add_parser(stages, name, what)
    option = course.add_argument
    option(
        "--model",
        default="spark",
        help="what is trained: spark, a folder in the official layout, or a hub id (default: "
        "spark)",
    )
    option(
        "--data",
        metavar="FILE[:WEIGHT]",
        nargs="+",
        required=True,
        help="rows: .jsonl, .json, .tar, or a folder of them; and how often they are drawn "
        "(default: every row once an epoch)",
    )
    option("--held", metavar="FILE", nargs="+", default=[], help="rows to measure on")
    option("--out", required=True, type=Path, help="folder of the run")
    option("--steps", metavar="N", type=int, help="of every part of the stage")
    option("--epochs", metavar="N", type=float, help="steps for so many rounds through the rows")
    option(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="changes a number of the stage (docs/training.md), such as learning_rate=1e-5; "
        "repeatable",
    )
    add_leg(course)
    option("--system", metavar="TEXT", help="system prompt of rows that have none")
    option(
        "--lora",
        metavar="RANK",
        type=int,
        nargs="?",
        const=16,
        help="train low-rank additions of this rank instead of the weights (default: 16)",
    )
    option("--bad-rows", metavar="SHARE", type=float, default=0.01, help="skipped (default: 0.01)")
    option("--workers", metavar="N", type=int, default=4, help="threads for media (default: 4)")
    option("--board", action="store_true", help="write for TensorBoard, too")
    return course


def add_new(stages: "Commands") -> argparse.ArgumentParser:
    what = "an untrained checkpoint: the architecture of another one, with random weights"
    new = stages.add_parser(
        "new",
        help=what,
        description=f"Writes {what}. Tokenizer and preprocessor files and the voices are the other "
        "one's; a speech encoder comes with the stage `tokenizer`.",
    )
    new.add_argument("--like", default="spark", help="whose architecture (default: spark)")
    new.add_argument("--out", required=True, type=Path, help="folder of the checkpoint")
    new.add_argument("--seed", metavar="N", type=int, default=0, help="(default: 0)")
    return new


def add_merge(stages: "Commands") -> argparse.ArgumentParser:
    merge = add_parser(stages, "merge", "a checkpoint with an adapter of LoRA, ours or peft's")
    merge.add_argument("--model", required=True, help="the checkpoint that it was trained on")
    merge.add_argument("--adapter", required=True, type=Path, help="folder of the adapter")
    merge.add_argument("--out", required=True, type=Path, help="folder of the merged checkpoint")
    return merge


def add_spark(stages: "Commands") -> argparse.ArgumentParser:
    spark = add_parser(stages, "spark", "the shipped checkpoint from nothing, by its recipe")
    add_folders(spark)
    spark.add_argument("--out", type=Path, help="folder of the checkpoint")
    listed = "; ".join(f"{name}: {what}" for name, (what, _) in SPARK_STAGES.items())
    spark.add_argument(
        "--only",
        metavar="STAGE",
        choices=SPARK_STAGES,
        help=f"train this stage and nothing else ({listed})",
    )
    add_leg(spark)
    return spark


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


def wanted_cases(options: argparse.Namespace) -> dict[str, Any]:
    """What playroom.dataset.make() is asked for."""
    return {
        "seed": options.seed,
        "num_cases": options.cases,
        "split": options.split,
        "voices": options.voices,
        "tasks": [name.strip() for name in options.tasks.split(",") if name.strip()],
        "asked": options.asked,
        "speak": not options.mute,
        "workers": options.workers,
    }


# ---- what several commands share


def add_parser(stages: "Commands", name: str, what: str) -> argparse.ArgumentParser:
    return stages.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=TRAINING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, type=Path, help="folder of the playroom's data")
    parser.add_argument(
        "--run", dest="run_folder", required=True, type=Path, help="folder of the run"
    )


def add_leg(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="end this leg after so many minutes"
    )


def sources(words: list[str]) -> list[tuple[str, float] | str]:
    """FILE or FILE:WEIGHT each -> what train_on() takes. A file that is there keeps its colon."""
    found: list[tuple[str, float] | str] = []
    for word in words:
        path, colon, weight = word.rpartition(":")
        if not colon or Path(word).exists():
            found.append(word)
            continue
        try:
            found.append((path, float(weight)))
        except ValueError:
            raise ValueError(f"--data {word}: {weight!r} is no weight; give FILE:NUMBER") from None
    return found


def changes(options: argparse.Namespace) -> dict[str, str]:
    """What --steps, --epochs and --set change, as it was written."""
    pairs = [word.partition("=") for word in options.set]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise ValueError(f"--set {wrong[0]} changes nothing; give NAME=VALUE")
    named = {name: getattr(options, name) for name in ("steps", "epochs")}
    plain = {name: str(value) for name, value in named.items() if value is not None}
    return {name: value for name, _, value in pairs} | plain
