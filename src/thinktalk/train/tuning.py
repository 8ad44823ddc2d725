"""Any checkpoint and anybody's rows in; the checkpoint with a stage trained on them out.

A run folder holds a folder for every part of the stage (checkpoints, log.jsonl), kept/ (what is
made once), and in the end model/, complete and in the official layout. Whatever ends a run, the
same command goes on where its last checkpoint stood.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from thinktalk import adapters
from thinktalk.adapters import Lora
from thinktalk.config import OmniConfig
from thinktalk.model.omni import without_storage
from thinktalk.parallel import Ranks, join, leave
from thinktalk.train import command, speech_courses, stages
from thinktalk.train.checkpoint import best_weights, read_rest
from thinktalk.train.data import Loader
from thinktalk.train.feed import Batches
from thinktalk.train.job import Course, Job
from thinktalk.train.omni import prepare, put_back_any, write_adapter
from thinktalk.train.shards import Source, open_source
from thinktalk.train.spelling import READER_FILE
from thinktalk.train.stages import RowStage
from thinktalk.train.trainer import Stage, Task, train
from thinktalk.train.voice import ENCODER_FILE
from thinktalk.weights import (
    CONFIG,
    FLOATS,
    LoadedModel,
    check,
    find,
    load,
    read_json,
    save,
    usable_device,
    weight_files,
)

LOG = logging.getLogger(__name__)

MODEL, NOTE = "model", "run.json"
# whose stored dtypes stand for those of Thinker and Talker, and of Token2Wav
TEXT_WEIGHT = "thinker.lm_head.weight"
VOICE_WEIGHT = "token2wav.code2wav_bigvgan_model.conv_pre.weight"

COURSES: dict[str, Course] = {
    "align": Course((stages.align_adapters, stages.align_encoders), prepare),
    "omni": Course((stages.omni,), prepare, put_back_any, write_adapter, lora=True),
    "long": Course((stages.long,), prepare, put_back_any, write_adapter, lora=True),
    "sft": Course((stages.sft,), prepare, put_back_any, write_adapter, lora=True),
    **speech_courses.COURSES,
}


def train_on(
    name: str,
    *,
    model: str | Path,
    data: Sequence[Any],
    out: Path,
    held: Sequence[Any] = (),
    changes: Mapping[str, Any] | None = None,
    lora: Lora | None = None,
    system: str | None = None,
    device: str = "cpu",
    minutes: float = math.inf,
    workers: int = 4,
    max_bad_share: float = 0.01,
    board: bool = False,
) -> bool:
    """Trains the stage for at most `minutes`; True when it is done and out/model is written.

    model: what weights.load takes. data: what shards.open_source takes, or pairs of that and how
    often it is drawn. held: rows to measure on, never trained on. changes: of the numbers of every
    part of the stage, such as {"steps": 500}. lora: trains low-rank additions instead of weights,
    which are written to out/adapter, too. Under torchrun all processes train together. Raises
    ValueError for what is wrong, before anything is trained where it can be told by then.
    """
    course = _course(name, lora)
    ranks = join(usable_device(device))
    base, (sources, weights) = find(model), _opened(data)
    _note(out, ranks, {"stage": name, "model": str(model), "lora": _plain(lora)})
    rest = {
        **{"base": str(model), "sources": sources, "weights": weights, "held": _opened(held)[0]},
        **{"ranks": ranks, "out": out, "lora": lora, "system": system, "workers": workers},
        "max_bad_share": max_bad_share,
    }

    def job(parts: Sequence[Stage], dtype: torch.dtype | None) -> Job:
        """With what these parts have learned."""
        made = Job(model=load(base, dtype=dtype), **rest)
        for part in parts:
            made = replace(made, model=course.put_back(made, best_weights(out / part.name)))
        return made

    def prepared(part: Stage, before: Sequence[Stage]) -> tuple[Task, Batches | None]:
        torch.manual_seed(part.seed)
        # under additions the weights stay as they are, and so may their precision
        return course.prepare(job(before, torch.float32 if lora is None else None), part)

    parts, began = [_changed(make(), changes or {}) for make in course.stages], time.monotonic()
    for number, part in enumerate(parts):
        task, loader = ranks.in_turn(partial(prepared, part, parts[:number]))
        folder = out / part.name
        parts[number] = _counted(part, loader, folder)
        left = minutes - (time.monotonic() - began) / 60
        how = {"loader": loader, "device": device, "minutes": left, "board": board}
        if not train(parts[number], task, folder, **how):
            return False
    if ranks.is_first:
        dtypes = _stored_dtypes(base)
        _finish(course, job(parts, dtypes[0]), out / parts[-1].name, dtypes=dtypes)
    ranks.wait()
    return True


def merge_adapter(model: str | Path, adapter: Path, out: Path) -> None:
    """Writes the checkpoint with an adapter of LoRA, ours or peft's, merged into its weights."""
    base = find(model)
    dtypes = _stored_dtypes(base)
    loaded = load(base, dtype=dtypes[0])
    adapters.load(loaded.omni, adapter)
    adapters.merge(loaded.omni)
    _write(loaded, out, dtypes=dtypes)


def train_as_told(options: Namespace) -> bool:
    """train_on() as the command line says, as the whole work of a process."""
    try:
        return train_on(
            options.stage,
            model=options.model,
            data=command.sources(options.data),
            out=options.out,
            held=options.held,
            changes=command.changes(options),
            lora=None if options.lora is None else Lora(options.lora, alpha=2 * options.lora),
            system=options.system,
            device=options.device,
            minutes=options.minutes,
            workers=options.workers,
            max_bad_share=options.bad_rows,
            board=options.board,
        )
    finally:
        leave()


def _course(name: str, lora: Lora | None) -> Course:
    if name not in COURSES:
        raise ValueError(f"unknown stage {name!r}: choose one of {', '.join(COURSES)}")
    if lora is not None and not COURSES[name].lora:
        raise ValueError(f"{name} trains weights as they are; leave out lora")
    return COURSES[name]


def _opened(data: Sequence[Any]) -> tuple[list[Source], list[float] | None]:
    """The sources and how often each is drawn; None where no source has a weight."""
    pairs = [entry if isinstance(entry, tuple) else (entry, None) for entry in data]
    sources = [open_source(entry) for entry, _ in pairs]
    if all(weight is None for _, weight in pairs):
        return sources, None
    return sources, [1.0 if weight is None else float(weight) for _, weight in pairs]


def _changed(stage: Stage, changes: Mapping[str, Any]) -> Stage:
    """The stage with other numbers; those in writing are read as what they replace."""
    known = {field.name: getattr(stage, field.name) for field in fields(stage)}
    if unknown := sorted(changes.keys() - known):
        raise ValueError(f"a stage has no {unknown[0]!r}; its numbers are {', '.join(known)}")
    return replace(stage, **{name: _read(name, v, known[name]) for name, v in changes.items()})


def _read(name: str, value: Any, before: Any) -> Any:
    if not isinstance(value, str) or isinstance(before, str):
        return value
    try:
        if isinstance(before, tuple):
            kind = type(before[0]) if before else str
            return tuple(kind(word) for word in value.split(","))
        if isinstance(before, bool):
            return {"true": True, "false": False}[value.lower()]
        return type(before)(value)
    except (ValueError, KeyError):
        raise ValueError(f"{name} is {before!r}, so it cannot become {value!r}") from None


def _counted(stage: Stage, loader: Batches | None, folder: Path) -> Stage:
    """With the steps that the epochs take, if these are given."""
    if not (isinstance(stage, RowStage) and stage.epochs and isinstance(loader, Loader)):
        return stage
    rest = read_rest(folder)  # the parts of a step are those of the first leg
    parts = stage.parts or (rest["parts"] if rest else loader.world)
    return replace(stage, steps=math.ceil(stage.epochs * len(loader.packs(0)) / parts))


def _note(out: Path, ranks: Ranks, what: dict[str, Any]) -> None:
    """Remembers in the folder what it is for. Raises ValueError if it is for something else."""
    path, failure = out / NOTE, None
    if ranks.is_first:
        if path.exists():
            there = json.loads(path.read_text())
            other = [key for key in what if there.get(key) != what[key]]
            if other:
                failure = (
                    f"{out} holds a run with {other[0]} {there.get(other[0])!r}, not "
                    f"{what[other[0]]!r}; give that again, or another folder"
                )
        else:
            out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(what) + "\n")
    if failure := ranks.as_first(failure):
        raise ValueError(failure)


def _plain(lora: Lora | None) -> dict[str, Any] | None:
    """As JSON gives it back."""
    return lora and json.loads(json.dumps(asdict(lora)))


def _stored_dtypes(base: Path) -> tuple[torch.dtype, torch.dtype]:
    """Those in which the checkpoint keeps Thinker and Talker, and Token2Wav."""
    omni = without_storage(OmniConfig.from_dict(read_json(base / CONFIG)))
    stored = check(weight_files(base), omni, folder=base)
    return FLOATS[stored[TEXT_WEIGHT]], FLOATS[stored[VOICE_WEIGHT]]


def _finish(
    course: Course, job: Job, stage: Path, *, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Writes out/model, and what comes with it, after the last part of the stage."""
    extras = partial(course.extras, job, best_weights(stage))
    _write(job.model, job.out / MODEL, dtypes=dtypes, extras=extras)


def _write(
    model: LoadedModel,
    folder: Path,
    *,
    dtypes: tuple[torch.dtype, torch.dtype],
    extras: Callable[[Path], None] = lambda _: None,
) -> None:
    """The checkpoint in the official layout and, if it has one, its speech encoder.

    A folder of that name is complete; what stood there is replaced once the new one is.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        save(model, part, dtype=dtypes[0], token2wav_dtype=dtypes[1])
        for name in (ENCODER_FILE, READER_FILE):
            if (model.folder / name).exists():
                shutil.copyfile(model.folder / name, part / name)
        extras(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ValueError(
            f"{folder} cannot be written ({error}); what was trained is safe. Make room, and give "
            "the same command again"
        ) from error
