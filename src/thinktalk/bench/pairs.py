"""The same question to both, in turns: our engine in real time, and transformers when it is over.

transformers cannot begin before it has the whole sound, and gives no sound before it has all of
it; so its first audio and its last come together.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import Any

import torch

from thinktalk.bench.calls import Calls, Workload, measure
from thinktalk.bench.meter import Spent, median_of
from thinktalk.bench.plan import Network
from thinktalk.bench.stages import (
    UTTERANCE,
    UTTERANCE_BLOCKS,
    Stage,
    measure_stages,
    seconds_of,
)
from thinktalk.config import Solver
from thinktalk.generate import load_processor, load_tokenizer
from thinktalk.live.engine import Engine
from thinktalk.media.chat import SPEECH_SYSTEM_PROMPT
from thinktalk.media.mel import VOICE_HZ
from thinktalk.media.prompt import build_prompt
from thinktalk.weights import LoadedModel

NOTHING = Spent(0.0, 0.0)
OFFICIAL_EVALUATIONS = 36  # nine Runge-Kutta steps
TRIAL = 8, 30  # text tokens and codec ids of the short answers that find the best thread count


@dataclass(frozen=True)
class Side:
    """What one of the two needed, medians of its runs. Seconds from the end of the turn: to the
    first sound, to the last; rtf: the latter over the duration of the sound. For a second of sound:
    cpu_per_sound_s of the processor, ours with all the listening, and dit_per_sound_s in the DiT.
    evaluations: of the ODE solver; peak_mib: of the process, or the device; threads: of a CPU."""

    first_audio_s: float
    total_s: float
    rtf: float
    cpu_per_sound_s: float
    dit_per_sound_s: float
    evaluations: int
    peak_mib: float
    threads: int


@dataclass(frozen=True)
class Pairs:
    version: str  # of transformers
    pairs: int
    ours: Side
    theirs: Side

    @property
    def ratios(self) -> dict[str, float]:
        """Theirs to ours: how many times less we need."""
        names = (f.name for f in fields(Side) if f.name not in ("evaluations", "threads"))
        return {name: getattr(self.theirs, name) / getattr(self.ours, name) for name in names}


class Worker:
    """peer.py in its process; an attribute is a request."""

    def __init__(self) -> None:
        if find_spec("transformers") is None:
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thinktalk.bench.peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Raises ValueError with what went wrong there."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended; see above"}
        if "error" in answer:
            raise ValueError(f"transformers: {answer['error']}")
        return answer


def compare(
    engine: Engine,
    workload: Workload,
    *,
    has_weights: bool,
    pairs: int,
    evaluations: int,
    say: Callable[[str], None],
) -> Pairs:
    """has_weights: the model's folder holds them; else transformers makes up its own. evaluations:
    ours; the reference gets at most as many, in steps of four, which is all that its solver can
    do. say: told what is being done."""
    model, points = engine.model, max(2, evaluations // 4 + 1)
    request = {
        "sound": workload.question.tolist(),
        "prompt": prompt_ids(model, workload),
        "voice": engine.voices[0],
        "points": points,
        "seed": workload.seed,
    }
    length = {"reply_tokens": workload.reply_tokens, "reply_ids": workload.reply_ids}
    with Worker() as worker:
        say("transformers: loading")
        loaded = worker.ask(
            "load",
            folder=str(model.folder),
            weights=has_weights,
            device=str(model.device),
            dtype=str(model.omni.thinker.dtype).removeprefix("torch."),
        )
        threads = 1
        if engine.has_thread:
            threads = best_threads(worker, request, model.device)
            say(f"transformers: {threads} threads are its best")
        worker.ask("answer", **request, **length, threads=threads)
        ours, theirs = [], []
        for number in range(pairs):
            say(f"pair {number + 1} of {pairs}")
            ours.append(measure(engine, workload, sessions=1, turn_end="commit"))
            theirs.append(worker.ask("answer", **request, **length, threads=threads))
        peak_mib = worker.ask("peak")["mib"]
    their_side = side_of(
        theirs,
        on_processor=not engine.has_thread,
        evaluations=4 * (points - 1),
        peak_mib=peak_mib,
        threads=threads,
    )
    return Pairs(loaded["version"], pairs, our_side(ours, evaluations=evaluations), their_side)


def prompt_ids(model: LoadedModel, workload: Workload) -> list[int]:
    """The prompt as transformers' own processor would write it."""
    system = workload.system or SPEECH_SYSTEM_PROMPT
    prompt = build_prompt(
        [{"role": "user", "content": [{"type": "audio", "audio": workload.question}]}],
        tokenizer=load_tokenizer(model.folder),
        config=model.config.thinker_config,
        processor=load_processor(model.folder),
        exact=True,
        system=system,
    )
    return prompt.ids.tolist()


def best_threads(worker: Worker, request: dict[str, Any], device: torch.device) -> int:
    """1, 2, 4, ... up to the number of cores: with which it gives a short answer soonest."""
    cores = os.cpu_count() or 1
    if device.type != "cpu":
        return cores
    counts = sorted({cores, *(2**n for n in range(cores.bit_length()) if 2**n <= cores)})
    length = {"reply_tokens": TRIAL[0], "reply_ids": TRIAL[1]}
    seconds = {}
    for threads in counts:
        worker.ask("answer", **request, **length, threads=threads)
        again = [worker.ask("answer", **request, **length, threads=threads) for _ in range(2)]
        seconds[threads] = min(answer["seconds"] for answer in again)
    return min(counts, key=lambda threads: seconds[threads])


def our_side(runs: list[Calls], *, evaluations: int) -> Side:
    calls = [run.calls[0] for run in runs]
    return Side(
        first_audio_s=statistics.median(call.first_audio_s for call in calls),
        total_s=statistics.median(call.end_s for call in calls),
        rtf=statistics.median(call.rtf for call in calls),
        cpu_per_sound_s=statistics.median(
            run.cpu_s / run.calls[0].playback.duration_s for run in runs
        ),
        dit_per_sound_s=statistics.median(
            run.shares.seconds["dit"] / run.calls[0].playback.duration_s for run in runs
        ),
        evaluations=evaluations,
        peak_mib=max(run.peak_mib for run in runs),
        threads=torch.get_num_threads(),
    )


def side_of(
    answers: list[dict[str, Any]],
    *,
    on_processor: bool,
    evaluations: int,
    peak_mib: float,
    threads: int,
) -> Side:
    """on_processor: time is what the processor took, not what the clock says."""
    seconds, dit = ("cpu_s", "dit_cpu_s") if on_processor else ("seconds", "dit_s")
    total_s = statistics.median(answer[seconds] for answer in answers)

    def per_sound(key: str) -> float:
        return statistics.median(a[key] / (a["samples"] / VOICE_HZ) for a in answers)

    return Side(
        first_audio_s=total_s,
        total_s=total_s,
        rtf=per_sound(seconds),
        cpu_per_sound_s=per_sound("cpu_s"),
        dit_per_sound_s=per_sound(dit),
        evaluations=evaluations,
        peak_mib=peak_mib,
        threads=threads,
    )


# ---- a network alone


def compare_stages(
    model: LoadedModel, *, device: str, networks: tuple[Network, ...], solver: Solver, rounds: int
) -> list[Stage]:
    """Ours and, where transformers can do the same (whole utterances in one row), theirs; rounds
    alternate, and every number is the median over them."""
    kept: dict[Stage, list[Spent]] = {}
    with Worker() as worker:
        for _ in range(rounds):
            found = measure_stages(model.omni, networks=networks, solver=solver)
            found += their_stages(worker, model, networks, device=device)
            for stage in found:
                kept.setdefault(replace(stage, spent=NOTHING), []).append(stage.spent)
    return [replace(stage, spent=median_of(runs)) for stage, runs in kept.items()]


def their_stages(
    worker: Worker, model: LoadedModel, networks: tuple[Network, ...], *, device: str
) -> list[Stage]:
    found = []
    for network, name, runs in (
        ("dit", f"DiT of transformers, {OFFICIAL_EVALUATIONS} evaluations", OFFICIAL_EVALUATIONS),
        ("vocoder", "vocoder of transformers", 1),
    ):
        if network in networks:
            answer = worker.ask(
                "alone",
                folder=str(model.folder),
                network=network,
                blocks=UTTERANCE_BLOCKS,
                device=device,
                threads=torch.get_num_threads(),
            )
            spent = Spent(**answer).times(runs)
            sound_s = seconds_of(model.omni.token2wav, UTTERANCE_BLOCKS)
            found.append(Stage(name, UTTERANCE, 1, spent, sound_s))
    return found
