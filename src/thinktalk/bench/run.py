"""`thinktalk bench`: a plan in, tables on stdout and one JSON file with every number out."""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from thinktalk.bench import tables
from thinktalk.bench.calls import Workload, measure
from thinktalk.bench.distances import measure_distances
from thinktalk.bench.pairs import compare, compare_stages
from thinktalk.bench.plan import Plan
from thinktalk.bench.question import load_question, made_up
from thinktalk.bench.random_model import SYSTEM, random_model
from thinktalk.bench.stages import measure_stages, modules
from thinktalk.bench.turn_end import measure_turn_end
from thinktalk.bench.watch import endless
from thinktalk.config import Solver
from thinktalk.live.engine import Engine
from thinktalk.weights import LoadedModel, load, usable_device

IDS_PER_SECOND = 50
WARM_UP = Workload(made_up(1.0), reply_tokens=4, reply_ids=26)


def run(plan: Plan, *, out: Path) -> dict[str, Any]:
    """Measures, prints a table, writes `out`; returns what it wrote. Raises ValueError where the
    plan cannot be carried out."""
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    with tempfile.TemporaryDirectory() as scratch:
        model = model_of(plan, Path(scratch))
        plan = replace(plan, solver=solver_of(model, plan))
        what = "pairs" if plan.what == "calls" and plan.against else plan.what
        numbers = MEASURES[what](model, plan)
        report = {"machine": machine(model, plan), "plan": asdict(plan), **numbers}
    print(tables.report(report))
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(f"every number: {out}")
    return report


def calls_of(model: LoadedModel, plan: Plan) -> dict[str, Any]:
    workload = workload_of(plan)
    found = []
    for sessions in plan.sessions:
        with engine_of(model, plan, sessions=sessions) as engine:
            for turn_end in plan.turn_ends:
                say(f"{sessions} sessions, turns end by {turn_end}")
                warm = replace(WARM_UP, system=workload.system)
                measure(engine, warm, sessions=sessions, turn_end="commit")
                calls = measure(engine, workload, sessions=sessions, turn_end=turn_end)
                found.append(asdict(calls))
    return {"calls": found}


def pairs_of(model: LoadedModel, plan: Plan) -> dict[str, Any]:
    workload = workload_of(plan)
    with engine_of(model, plan, sessions=1) as engine:
        measure(engine, workload, sessions=1, turn_end="commit")
        pairs = compare(
            engine,
            workload,
            has_weights=plan.random is None,
            pairs=plan.pairs,
            evaluations=len(engine.passes.schedule.modulations),
            say=say,
        )
    return {"pairs": asdict(pairs) | {"ratios": pairs.ratios}}


def turn_end_of(model: LoadedModel, plan: Plan) -> dict[str, Any]:
    return {"turn_end": asdict(measure_turn_end(model))}


def stages_of(model: LoadedModel, plan: Plan) -> dict[str, Any]:
    solver = solver_of(model, plan)
    if plan.against:
        found = compare_stages(
            model,
            device=plan.device,
            networks=plan.networks,
            solver=solver,
            rounds=plan.pairs,
        )
    else:
        found = measure_stages(model.omni, networks=plan.networks, solver=solver)
    return {"stages": [asdict(stage) | {"per_sound_s": stage.per_sound_s} for stage in found]}


def distances_of(model: LoadedModel, plan: Plan) -> dict[str, Any]:
    found = measure_distances(model, spoken=plan.random is None, seed=plan.seed)
    return {"distances": [asdict(distance) for distance in found]}


MEASURES = {
    "calls": calls_of,
    "pairs": pairs_of,
    "turn-end": turn_end_of,
    "stages": stages_of,
    "distances": distances_of,
}


# ---- what is measured


def model_of(plan: Plan, folder: Path) -> LoadedModel:
    """folder: where a random model may put its config, tokenizer and voice."""
    voice_dtype: torch.dtype = getattr(torch, plan.voice_dtype)
    dtype = None if plan.dtype is None else getattr(torch, plan.dtype)
    if plan.random is None:
        model = load(plan.model, device=plan.device, dtype=dtype)
        model.omni.token2wav.code2wav_dit_model.to(voice_dtype)
        return model
    some = plan.what == "stages"
    return random_model(
        plan.random,
        folder,
        device=usable_device(plan.device),
        dtype=dtype,
        dit_dtype=voice_dtype,
        seed=plan.seed,
        parts=(lambda omni: modules(omni, plan.networks)) if some else None,
    )


def solver_of(model: LoadedModel, plan: Plan) -> Solver:
    return plan.solver or model.config.token2wav_config.dit_config.solver


@contextmanager
def engine_of(model: LoadedModel, plan: Plan, *, sessions: int) -> Iterator[Engine]:
    threaded = plan.clock == "wall"
    engine = Engine(
        model,
        max_sessions=sessions,
        solver=plan.solver,
        voice_threads=plan.voice_threads,
        thread=threaded,
    )
    endless(engine)
    try:
        yield engine
    finally:
        engine.close()


def workload_of(plan: Plan) -> Workload:
    return Workload(
        load_question(plan.question, seconds=plan.seconds),
        reply_tokens=plan.reply_tokens,
        reply_ids=round(plan.reply_seconds * IDS_PER_SECOND),
        seed=plan.seed,
        system=None if plan.random is None else SYSTEM,
    )


# ---- where it was measured


def machine(model: LoadedModel, plan: Plan) -> dict[str, Any]:
    omni = model.omni
    dit = omni.token2wav.code2wav_dit_model.proj_out.weight
    on_gpu = plan.device.startswith("cuda")
    return {
        "torch": torch.__version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
        "device": torch.cuda.get_device_name(plan.device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(omni.thinker.dtype).removeprefix("torch."),
        "dit_dtype": str(dit.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in omni.parameters()),
    }


def processor() -> str:
    """Its name, as Linux tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
