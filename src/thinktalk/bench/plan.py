"""What to measure: the command line in, a plan out. No torch, so that --help stays quick."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from thinktalk.command import DTYPES, add_model
from thinktalk.config import Solver

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

What = Literal["calls", "turn-end", "stages", "distances"]
TurnEnd = Literal["commit", "detector"]
Clock = Literal["wall", "processor"]
Network = Literal["audio", "vision", "thinker", "talker", "dit", "vocoder"]

NETWORKS: tuple[Network, ...] = get_args(Network)
DESCRIPTION = """\
Measures speed and memory. By default: calls in real time, for every number of sessions once with
turns that the caller ends and once with turns that the detector ends."""


@dataclass(frozen=True)
class Plan:
    """model: a checkpoint; or random: a size of random_model.SIZES. dtype: of Thinker and Talker,
    voice_dtype: of the DiT. solver: by default the checkpoint's. threads: of torch, voice_threads:
    beside the engine's. sessions: how many at once, one measurement each. seconds: of the question,
    which is the sound `question`, or made up. clock: as calls.py says; the processor's is for one
    thread of a CPU. what: calls in real time, what is left to do at the end of a turn, these
    `networks` alone, or how far cheaper ways to the mel lead from the exact one. against: put
    transformers beside it."""

    what: What = "calls"
    model: str = "spark"
    random: str | None = None
    device: str = "cpu"
    dtype: str | None = None
    voice_dtype: str = "float32"
    threads: int | None = None
    voice_threads: int | None = None
    solver: Solver | None = None
    clock: Clock = "wall"
    sessions: tuple[int, ...] = (1, 2, 4, 8)
    turn_ends: tuple[TurnEnd, ...] = get_args(TurnEnd)
    question: str | None = None
    seconds: float = 5.0
    reply_tokens: int = 24
    reply_seconds: float = 4.0
    networks: tuple[Network, ...] = NETWORKS
    against: bool = False
    pairs: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.against and self.what == "turn-end":
            raise ValueError("transformers does nothing before a turn ends; leave out --turn-end")
        if self.against and self.what == "distances":
            raise ValueError("--distances are measured on one model; leave out --against")
        if self.clock == "processor" and (self.threads != 1 or self.device != "cpu"):
            raise ValueError("--clock processor is for one thread of a CPU: add --threads 1")
        for name in ("seconds", "reply_tokens", "reply_seconds", "pairs"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        if not self.sessions or min(self.sessions) < 1:
            raise ValueError(f"sessions are {list(self.sessions)}; use numbers from 1 on")
        for names, known in ((self.networks, NETWORKS), (self.turn_ends, get_args(TurnEnd))):
            if unknown := set(names) - set(known):
                raise ValueError(f"{sorted(unknown)[0]!r} is none of {', '.join(known)}")


def plan_of(options: argparse.Namespace) -> Plan:
    """Raises ValueError for numbers and names that make no plan."""
    given = {f.name: getattr(options, f.name) for f in fields(Plan) if hasattr(options, f.name)}
    given["sessions"] = tuple(_number(word) for word in options.sessions.split(","))
    given["turn_ends"] = tuple(options.turn_ends.split(","))
    given["against"] = options.against is not None
    if options.turn_end:
        given["what"] = "turn-end"
    elif options.distances:
        given["what"] = "distances"
    elif options.stages is not None:
        given |= {"what": "stages", "networks": tuple(options.stages.split(","))}
    return Plan(**given)


def _number(word: str) -> int:
    if not word.strip().isdecimal():
        raise ValueError(f"--sessions: {word!r} is not a number; write them like 1,2,4")
    return int(word)


# ---- the command line


def add_bench(commands: "Commands", *, run: Callable[[argparse.Namespace], None]) -> None:
    bench = commands.add_parser("bench", help="measure speed and memory", description=DESCRIPTION)
    _add_model(bench.add_argument_group("what is measured"))
    _add_calls(bench.add_argument_group("calls in real time"))
    _add_others(bench.add_argument_group("other measurements"))
    bench.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path("bench.json"),
        help="every number as JSON (default: bench.json)",
    )
    bench.set_defaults(run=run)


def _add_model(group: argparse._ArgumentGroup) -> None:
    add_model(group)
    group.add_argument(
        "--random", metavar="SIZE", help="random weights instead: 7B, 3B, spark or tiny"
    )
    group.add_argument(
        "--voice-dtype",
        choices=DTYPES,
        default="float32",
        help="of the DiT; the state of its ODE and the vocoder stay float32 (default: float32)",
    )
    group.add_argument(
        "--solver",
        choices=get_args(Solver),
        help="of the DiT's ODE: 9, 6 or 36 evaluations (default: the checkpoint's)",
    )
    group.add_argument("--threads", metavar="N", type=int, help="of a CPU (default: torch's)")
    group.add_argument(
        "--voice-threads",
        metavar="N",
        type=int,
        help="that render the voice beside the engine's (default: for a small model on a CPU as "
        "many as --threads, if those are more than one)",
    )
    group.add_argument("--seed", metavar="N", type=int, default=0, help="(default: 0)")


def _add_calls(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sessions",
        metavar="N,...",
        default="1,2,4,8",
        help="how many at once, each number a measurement of its own (default: 1,2,4,8)",
    )
    group.add_argument(
        "--turn-ends",
        metavar="WHO,...",
        default="commit,detector",
        help="who ends the turns: commit, detector (default: both)",
    )
    group.add_argument(
        "--clock",
        choices=get_args(Clock),
        default="wall",
        help="on which the calls are played; processor: as if the engine had a core of its own, "
        "on a machine that is busy with something else (default: wall)",
    )
    group.add_argument(
        "--question", metavar="FILE", help="a recording of speech (default: a made-up voice)"
    )
    group.add_argument(
        "--seconds", metavar="S", type=float, default=5.0, help="of the question (default: 5)"
    )
    group.add_argument(
        "--reply-tokens", metavar="N", type=int, default=24, help="of every reply (default: 24)"
    )
    group.add_argument(
        "--reply-seconds", metavar="S", type=float, default=4.0, help="of speech (default: 4)"
    )


def _add_others(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--turn-end",
        action="store_true",
        help="instead of calls: the work that is left when a turn of 120 s ends, beside that of a "
        "turn of 2 s",
    )
    group.add_argument(
        "--distances",
        action="store_true",
        help="instead of calls: how far windows, solvers and bfloat16 lead from the exact mel",
    )
    group.add_argument(
        "--stages",
        metavar="NETWORK,...",
        nargs="?",
        const=",".join(NETWORKS),
        help=f"instead of calls: networks alone, some of {','.join(NETWORKS)} (default: all)",
    )
    group.add_argument(
        "--against",
        choices=("transformers",),
        help="measure transformers on the same checkpoint in turns: one call, or with --stages "
        "DiT and vocoder alone",
    )
    group.add_argument(
        "--pairs", metavar="N", type=int, default=3, help="with --against (default: 3)"
    )
