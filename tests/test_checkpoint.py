"""Checkpoints: complete or absent whatever happens, read by any number of ranks, exported."""

import json
import os
import pickle
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn

from thinktalk import parallel
from thinktalk.train import checkpoint
from thinktalk.train.checkpoint import Checkpoints, all_complete, best_weights, read_rest
from thinktalk.train.trainer import Stage, Task, Training, is_done, train

STAGE = Stage(
    "square", steps=12, learning_rate=0.05, batch_size=4, warmup_steps=2, ema=0.9, bfloat16=False
)
ALONE = parallel.Ranks(0, 1, 0, torch.device("cpu"), None)


class Square(Task):
    """Two layers, one of them frozen, one weight that never gets a gradient."""

    def __init__(self, *, width: int = 3, stop_after: int | None = None):
        torch.manual_seed(5)
        first, second = nn.Linear(2, width).requires_grad_(False), nn.Linear(width, 1)
        self.module = nn.Sequential(first, nn.Tanh(), second)
        self.module.register_parameter("unused", nn.Parameter(torch.ones(2)))
        self.stop_after, self.calls = stop_after, 0

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        return {"x": torch.from_numpy(rng.standard_normal((size, 2)).astype(np.float32))}

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        error = (self.module(batch["x"])[:, 0] - batch["x"].prod(1)).square().mean()
        return error, {"error": error}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What an undisturbed training gives."""
    folder = tmp_path_factory.mktemp("whole")
    train(STAGE, Square(), folder)
    return best_weights(folder)


def goes_on(folder: Path, whole: dict[str, Tensor]) -> None:
    assert train(STAGE, Square(), folder)
    ours = best_weights(folder)
    assert all(torch.equal(ours[name], tensor) for name, tensor in whole.items())


def steps_kept(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in all_complete(folder)]


@contextmanager
def small_files() -> Iterator[None]:
    """Files cannot grow any more: what a full disk does, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With save_every_s=0 every step is saved, and the next one waits for that."""
    monkeypatch.setattr(Checkpoints, "is_busy", False)


@pytest.mark.usefixtures("every_step")
def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    train(STAGE, Square(), tmp_path, save_every_s=0, keep=3)
    assert steps_kept(tmp_path) == [10, 11, 12]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"lock"}
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(tmp_path, ALONE, keep=0)


# ---- kill -9


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_the_data() -> None:
    synced = os.fsync

    def sync(handle: int) -> None:
        synced(handle)
        if ".distcp" in os.readlink(f"/proc/self/fd/{handle}"):
            die()

    os.fsync = sync


def before_the_list_of_tensors() -> None:
    pickle.dump = die


def in_the_rest() -> None:
    def dump(rest: dict[str, Any], file: Any) -> None:
        file.write(str(rest)[:20])
        file.flush()
        die()

    json.dump = dump


def before_renaming() -> None:
    Path.rename = die  # pyright: ignore[reportAttributeAccessIssue]


def before_dropping_old_ones() -> None:
    Checkpoints._drop_old = die


def while_dropping_old_ones() -> None:
    def remove(folder: Path, ignore_errors: bool = False) -> None:
        if folder.exists():
            (folder / checkpoint.TENSORS).unlink()
            die()

    shutil.rmtree = remove  # pyright: ignore[reportAttributeAccessIssue]


MOMENTS = {
    in_the_data: 6,
    before_the_list_of_tensors: 6,
    in_the_rest: 6,
    before_renaming: 6,
    before_dropping_old_ones: 7,
    while_dropping_old_ones: 7,
}


def killed(folder: Path, prepare: Callable[[], None]) -> None:
    """Dies while the state of step 7 is written."""
    checkpoints_save = Checkpoints.save

    def save(self: Checkpoints, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        self.finish()
        if rest["step"] == 7:
            prepare()
        checkpoints_save(self, tensors, rest)
        self.finish()

    Checkpoints.save = save
    train(STAGE, Square(), folder, save_every_s=0)


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_kill_damages_nothing(
    tmp_path: Path, moment: Callable[[], None], whole: dict[str, Tensor]
) -> None:
    _, codes = run_ranks(killed, tmp_path, moment, world=1)
    assert codes == [-signal.SIGKILL]
    rest = read_rest(tmp_path)
    assert rest is not None
    assert rest["step"] == MOMENTS[moment]
    goes_on(tmp_path, whole)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    assert len(steps_kept(tmp_path)) == 2


# ---- writing


def test_what_is_saved_may_change_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on while a thread writes: the step's own values are in the file."""
    may_write = threading.Event()
    write = Checkpoints._write

    def slow(*arguments: Any) -> None:
        may_write.wait()
        write(*arguments)

    monkeypatch.setattr(Checkpoints, "_write", slow)
    tensors = {"module.a": torch.arange(4.0), "module.b": torch.ones(2, 2)}
    with Checkpoints(tmp_path, ALONE) as checkpoints:
        checkpoints.save(tensors, {"step": 1})
        for tensor in tensors.values():
            tensor.fill_(-1)
        assert checkpoints.is_busy
        may_write.set()
    found = best_weights(tmp_path)
    assert found["a"].tolist() == [0, 1, 2, 3]
    assert found["b"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.usefixtures("every_step")
def test_a_full_disk_loses_nothing(
    tmp_path: Path, whole: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(STAGE, Square(stop_after=5), tmp_path, save_every_s=0)
    message = r"after step 12 cannot be written to .*\(.*too large.*\); checkpoint-5 stands"
    with small_files(), pytest.raises(ValueError, match=message):
        train(STAGE, Square(), tmp_path, save_every_s=0)
    assert "the same command goes on" in caplog.text
    assert steps_kept(tmp_path) == [4, 5]
    assert not is_done(tmp_path)
    goes_on(tmp_path, whole)


@pytest.mark.usefixtures("every_step")
def test_space_that_comes_back_in_time_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, failures = Checkpoints._write, iter([True, True, False, True])

    def fails(*arguments: Any) -> None:
        if next(failures, False):
            raise OSError("no space left on device")
        write(*arguments)

    monkeypatch.setattr(Checkpoints, "_write", fails)
    assert train(STAGE, Square(), tmp_path, save_every_s=0)
    assert steps_kept(tmp_path) == [11, 12]


# ---- reading


@pytest.mark.usefixtures("every_step")
def test_an_old_state_file_is_taken_over_bit_equal(
    tmp_path: Path, whole: dict[str, Tensor]
) -> None:
    """state.pt of earlier versions, with the optimizer's states by number."""
    with pytest.raises(KeyboardInterrupt):
        train(STAGE, Square(stop_after=8), tmp_path / "new", save_every_s=0)
    training = Training(STAGE, Square(), ALONE)
    with Checkpoints(tmp_path / "new", ALONE) as checkpoints:
        training.resume(checkpoints, None)
    averaged = training.averaged
    state = {
        "stage": {"steps": 12},
        "step": training.num_steps,
        "module": training.task.module.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "averaged": averaged,
        "usual": training.usual,
    }
    old = tmp_path / "old"
    old.mkdir()
    torch.save(state, old / "state.pt")
    rest = read_rest(old)
    assert rest is not None
    assert rest["step"] == training.num_steps == 8
    assert averaged is not None
    assert torch.equal(best_weights(old)["2.weight"], averaged["2.weight"])
    assert not is_done(old)
    goes_on(old, whole)
    assert [path.name for path in all_complete(old)] == ["state.pt", "checkpoint-12"]
    assert train(replace(STAGE, steps=13), Square(), old)
    assert steps_kept(old) == [12, 13]  # it was the oldest


def test_another_network_is_refused(tmp_path: Path) -> None:
    train(STAGE, Square(), tmp_path)
    with pytest.raises(ValueError, match=r"another network.*3 of another shape: 0.bias, 0.weight"):
        train(STAGE, Square(width=4), tmp_path)
    fewer = Square()
    del fewer.module.unused
    with pytest.raises(ValueError, match="1 unexpected: unused"):
        train(STAGE, fewer, tmp_path)
    assert steps_kept(tmp_path) == [12]


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.REST, "__0_0.distcp"])
def test_damage_is_told_with_its_remedy(tmp_path: Path, file: str) -> None:
    train(STAGE, Square(), tmp_path)
    path = tmp_path / "checkpoint-12" / file
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ValueError, match=r"checkpoint-12 cannot be read .* Remove it to go on"):
        train(STAGE, Square(), tmp_path)


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(STAGE, Square(), tmp_path)
    (tmp_path / "checkpoint-12" / checkpoint.TENSORS).write_bytes(pickle.dumps(Trap()))
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("it ran"))
    with pytest.raises(ValueError, match="has no business there"):
        best_weights(tmp_path)
