"""Training state on disk, in a stage's folder: everything that training needs to go on.

checkpoint-1200/ is the state after 1200 steps: tensors as torch.distributed.checkpoint lays them
out (a file from every rank, and .metadata), everything else in training.json. A thread writes it
under another name and renames it once it is complete, so a kill at any moment leaves nothing but
complete checkpoints. Any number of ranks reads what any other number wrote; they share the folder.
Earlier versions wrote a single file, state.pt, which counts as the oldest checkpoint.
"""

import json
import logging
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.distributed.tensor import DTensor, distribute_tensor

from thinktalk.parallel import Ranks, local, new_group
from thinktalk.weights import listing

LOG = logging.getLogger(__name__)

COMPLETE, PART = re.compile(r"checkpoint-(\d+)"), ".part"
TENSORS, REST = ".metadata", "training.json"
STATE_FILE = "state.pt"
MODULE, AVERAGED, OPTIMIZER = "module.", "averaged.", "optimizer."
# What AdamW keeps of a weight: how often it moved, moving means of the gradient and its square.
STEP, MEANS = "step", ("exp_avg", "exp_avg_sq")
# All that a .metadata consists of. It is a pickle, which could run anything else.
HARMLESS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata MetadataIndex TensorStorageMetadata TensorProperties ChunkStorageMetadata"
        " StorageMeta _MEM_FORMAT_ENCODING"
    ),
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch": "Size float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool",
    "torch.serialization": "_get_layout",
    "pathlib": "PosixPath WindowsPath",
}
READING_ERRORS = (CheckpointException, pickle.UnpicklingError, OSError, EOFError, LookupError)
READING_ERRORS += (AttributeError, TypeError, ValueError, RuntimeError)
# Tensors are copied before save() returns, into ordinary memory.
STAGING = StagingOptions(
    use_pinned_memory=False,
    use_shared_memory=False,
    use_async_staging=False,
    use_non_blocking_copy=False,
)

# Said whenever a single process saves or loads.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

Tensors = dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one stage, for all ranks to use alike.

    keep: how many are left; older ones go when a new one is complete. As a context it waits at its
    end for what is being written.
    """

    def __init__(self, folder: Path, ranks: Ranks, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least one checkpoint must be left")
        self.folder, self.ranks, self.keep = folder, ranks, keep
        if ranks.is_first:
            for unfinished in folder.glob(f"checkpoint-*{PART}"):
                shutil.rmtree(unfinished)
        # the thread talks to those of the other ranks while training goes on
        self._writers = replace(ranks, group=new_group()) if ranks.world > 1 else ranks
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._coming: Future[str | None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.finish()

    @property
    def is_busy(self) -> bool:
        return self._coming is not None and not self._coming.done()

    def save(self, tensors: Tensors, rest: dict[str, Any]) -> None:
        """Begins to write; what is given may change as soon as this returns. rest has a "step".

        If it cannot be written, that is logged, and the checkpoints before it stay.
        """
        if self._coming is not None:
            self._coming.result()
        staged = DefaultStager(STAGING).stage(tensors)
        assert isinstance(staged, dict)
        self._coming = self._thread.submit(self._try_to_write, staged, rest)

    def finish(self) -> None:
        """Waits for what is being written. Raises ValueError if that fails."""
        failure = self._coming.result() if self._coming is not None else None
        if failure is not None:
            raise ValueError(failure)

    def restore(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, averaged: Tensors | None
    ) -> dict[str, Any] | None:
        """Fills all three from the newest checkpoint; its rest, or None where there is none.

        Raises ValueError if it is damaged or of another network.
        """
        path = self.ranks.as_first(newest(self.folder))
        if path is None:
            return None
        with _clear_errors(path):
            if path.name == STATE_FILE:
                old, rest = _old_tensors(path, module, optimizer)
                shapes = {name: tuple(tensor.shape) for name, tensor in old.items()}
                fill = partial(_fill, source=old)
            else:
                reader, rest = Reader(path), _read_rest(path)
                shapes = {n: tuple(info.size) for n, info in reader.tensors().items()}
                fill = partial(load_tensors, storage_reader=reader, process_group=self.ranks.group)
        _compare(path, shapes, module)
        _prepare(optimizer, module, shapes)
        targets = training_tensors(module, optimizer, averaged)
        with _clear_errors(path):
            fill({name: tensor for name, tensor in targets.items() if name in shapes})
        if averaged is not None and not any(name.startswith(AVERAGED) for name in shapes):
            for name, tensor in module.state_dict().items():
                local(averaged[name]).copy_(local(tensor))
        return rest

    def _try_to_write(self, tensors: Tensors, rest: dict[str, Any]) -> str | None:
        """The reason, on all ranks, why it could not be written."""
        reason = None
        try:
            self._write(tensors, rest)
        except (CheckpointException, OSError, RuntimeError) as error:
            reason = _reason(error)
        reason = self._writers.as_first(reason)
        if reason is None:
            return None
        last = newest(self.folder)
        failure = (
            f"the state after step {rest['step']} cannot be written to {self.folder} ({reason}); "
            f"{f'{last.name} stands' if last else 'nothing is there yet'}. Make room; a later run "
            "of the same command goes on from what stands"
        )
        if self.ranks.is_first:
            LOG.warning("%s", failure)
        return failure

    def _write(self, tensors: Tensors, rest: dict[str, Any]) -> None:
        path = self.folder / f"checkpoint-{rest['step']}"
        part = path.with_name(path.name + PART)
        if self.ranks.is_first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, exist_ok=True)
        save_tensors(
            tensors,
            storage_writer=FileSystemWriter(part),
            process_group=self._writers.group,
        )
        if self.ranks.is_first:
            with (part / REST).open("w") as file:
                json.dump(rest, file)
                file.flush()
                os.fsync(file.fileno())
            _sync(part)
            part.rename(path)
            _sync(self.folder)
            self._drop_old()

    def _drop_old(self) -> None:
        for path in all_complete(self.folder)[: -self.keep]:
            if path.name == STATE_FILE:
                path.unlink()
                continue
            doomed = path.with_name(path.name + PART)  # half deleted it must not look complete
            path.rename(doomed)
            shutil.rmtree(doomed)


# ---- what a checkpoint holds


def training_tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, averaged: Tensors | None
) -> Tensors:
    """Weights, averaged weights and the optimizer's means by name; they share the memory."""
    tensors = {MODULE + name: tensor for name, tensor in module.state_dict().items()}
    tensors |= {AVERAGED + name: tensor for name, tensor in (averaged or {}).items()}
    for name, weight in module.named_parameters():
        for key, tensor in optimizer.state.get(weight, {}).items():
            tensors[f"{OPTIMIZER}{name}.{key}"] = tensor
    return tensors


def _prepare(optimizer: torch.optim.Optimizer, module: nn.Module, names: Iterable[str]) -> None:
    """Room for the means of every weight that has some among the names."""
    known = set(names)
    for name, weight in module.named_parameters():
        if weight.requires_grad and f"{OPTIMIZER}{name}.{STEP}" in known:
            means = {key: torch.zeros_like(weight.detach()) for key in MEANS}
            optimizer.state[weight] = {STEP: torch.zeros((), device=weight.device), **means}


def _compare(path: Path, shapes: Mapping[str, tuple[int, ...]], module: nn.Module) -> None:
    ours = {MODULE + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    theirs = {name: shape for name, shape in shapes.items() if name.startswith(MODULE)}
    differences = (
        ("missing", ours.keys() - theirs.keys()),
        ("unexpected", theirs.keys() - ours.keys()),
        ("of another shape", {n for n in ours.keys() & theirs.keys() if ours[n] != theirs[n]}),
    )
    problems = [
        f"{len(names)} {what}: {listing(sorted(n.removeprefix(MODULE) for n in names))}"
        for what, names in differences
        if names
    ]
    if problems:
        raise ValueError(
            f"{path} is of another network; of its tensors are {'; '.join(problems)}. Train with "
            "the configuration that it was made with, or in another folder"
        )


# ---- reading


def all_complete(folder: Path) -> list[Path]:
    """Every complete checkpoint, the newest last."""
    numbered = [
        (int(match[1]), path)
        for path in folder.glob("checkpoint-*")
        if (match := COMPLETE.fullmatch(path.name))
    ]
    old = folder / STATE_FILE
    return [old] * old.exists() + [path for _, path in sorted(numbered)]


def newest(folder: Path) -> Path | None:
    return next(reversed(all_complete(folder)), None)


def read_rest(folder: Path) -> dict[str, Any] | None:
    """What the newest checkpoint of a stage holds besides tensors; None in a fresh folder."""
    path = newest(folder)
    if path is None:
        return None
    with _clear_errors(path):
        if path.name == STATE_FILE:
            return _old_rest(_old_state(path))
        return _read_rest(path)


def best_weights(folder: Path) -> Tensors:
    """The trained weights of a stage's folder, whole: the averaged ones where there are any."""
    path = newest(folder)
    if path is None:
        raise ValueError(f"{folder} holds no training state; run that stage first")
    with _clear_errors(path):
        if path.name == STATE_FILE:
            state = _old_state(path)
            return state["averaged"] or state["module"]
        reader = Reader(path)
        stored = reader.tensors()
        kind = AVERAGED if any(name.startswith(AVERAGED) for name in stored) else MODULE
        weights = {
            name: torch.empty(info.size, dtype=info.properties.dtype)
            for name, info in stored.items()
            if name.startswith(kind)
        }
        load_tensors(weights, storage_reader=reader, no_dist=True)
    return {name.removeprefix(kind): tensor for name, tensor in weights.items()}


class Reader(FileSystemReader):
    """Reads a checkpoint and never executes anything in it."""

    def tensors(self) -> dict[str, TensorStorageMetadata]:
        stored = self.read_metadata().state_dict_metadata
        return {n: info for n, info in stored.items() if isinstance(info, TensorStorageMetadata)}

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with (Path(self.path) / TENSORS).open("rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in HARMLESS.get(module, "").split():
            raise pickle.UnpicklingError(f"{module}.{name} has no business there")
        return super().find_class(module, name)


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Says which checkpoint cannot be read, and what to do."""
    try:
        yield
    except READING_ERRORS as error:
        raise ValueError(
            f"{path} cannot be read ({_reason(error)}); it is damaged. Remove it to go on from the "
            "checkpoint before it, or from nothing"
        ) from error


def _read_rest(path: Path) -> dict[str, Any]:
    return json.loads((path / REST).read_text())


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        failures = {str(failure) for failure, _ in error.failures.values()}
        return "; ".join(sorted(failures))
    return str(error) or type(error).__name__


def _sync(folder: Path) -> None:
    """Makes names in a folder as durable as the files behind them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- the file that earlier versions wrote


def _old_state(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _old_rest(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": state["stage"],
        "step": state["step"],
        "usual": state["usual"].item(),
        "parts": 1,
        "data": None,
        "done": state["step"] >= state["stage"]["steps"],
    }


def _old_tensors(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Tensors, dict[str, Any]]:
    state = _old_state(path)
    tensors = {MODULE + name: tensor for name, tensor in state["module"].items()}
    tensors |= {AVERAGED + name: tensor for name, tensor in (state["averaged"] or {}).items()}
    names = {weight: name for name, weight in module.named_parameters()}
    # the optimizer numbers its weights through all groups
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, values in state["optimizer"]["state"].items():
        if number < len(weights):  # else it is of another network, which comes out later
            for key, value in values.items():
                tensors[f"{OPTIMIZER}{names[weights[number]]}.{key}"] = value
    return tensors, _old_rest(state)


@torch.no_grad()
def _fill(targets: Tensors, source: Tensors) -> None:
    for name, target in targets.items():
        if isinstance(target, DTensor):
            mesh, placements = target.device_mesh, target.placements
            target.copy_(distribute_tensor(source[name], mesh, placements, src_data_rank=None))
        else:
            target.copy_(source[name])
