"""The training loop: legs, resuming, parts of steps, broken batches, averaged weights."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from thinktalk.train import trainer
from thinktalk.train.checkpoint import best_weights, read_rest
from thinktalk.train.journal import curve
from thinktalk.train.trainer import Stage, Task, _schedule, is_done, train

STAGE = Stage("line", steps=40, learning_rate=0.05, batch_size=8, warmup_steps=4, bfloat16=False)


class Line(Task):
    """Learns y = 3x - 1 with a frozen companion, with dropout so that the torch RNG matters."""

    def __init__(
        self,
        *,
        broken_step: int | None = None,
        steep_step: int | None = None,
        stop_after: int | None = None,
    ):
        torch.manual_seed(1)
        self.line, self.frozen = nn.Linear(1, 1), nn.Linear(2, 2).requires_grad_(False)
        self.module = nn.ModuleDict({"line": self.line, "frozen": self.frozen})
        self.broken_step, self.steep_step = broken_step, steep_step
        self.stop_after, self.calls = stop_after, 0
        self.weights: list[float] = []  # in front of every step

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        return {"x": torch.from_numpy(rng.standard_normal((size, 1)).astype(np.float32))}

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.weights.append(self.line.weight.item())
        target = 3 * batch["x"] - 1
        error = self.line(nn.functional.dropout(batch["x"], 0.1)) - target
        loss = error.square().mean()
        if self.broken_step is not None and self.calls >= self.broken_step:
            loss = loss * torch.nan
        if self.calls == self.steep_step:
            loss = loss * 1000
        self.calls += 1
        return loss, {"error": loss}

    def evaluate(self) -> dict[str, float]:
        return {"weight": self.line.weight.item()}


class Rows(Line):
    """Batches of different sizes, which count by their rows."""

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        return super().batch(rng, int(rng.integers(1, size)))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.line(batch["x"]) - 3 * batch["x"] + 1).square().mean()
        return loss, {"error": loss} | ({"long": loss} if len(batch["x"]) > 3 else {})

    def weight(self, batch: dict[str, Any]) -> float:
        return len(batch["x"])


class Numbers:
    """A loader of 50 batches, some of which are idle."""

    def __init__(self, *, idle: tuple[int, ...] = (), rank: int = 0, world: int = 1):
        self.rank, self.world, self.place, self.idle = rank, world, 0, idle
        self.given: list[int] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self.place < 50:
            self.place += 1
            self.given.append(self.place)
            x = torch.full((4, 1), 1e6 if self.place in self.idle else self.place / 50)
            yield {"x": x, "idle": torch.tensor(self.place in self.idle)}

    def state(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def finished(folder: Path, task: Line, stage: Stage = STAGE) -> dict[str, Tensor]:
    assert train(stage, task, folder, log_every=10, evaluate_every=20)
    return best_weights(folder)


def test_it_learns_logs_and_ends(tmp_path: Path) -> None:
    weights = finished(tmp_path, Line(), replace(STAGE, steps=200))
    assert weights["line.weight"].item() == pytest.approx(3, abs=0.4)
    rows = curve(tmp_path)
    losses = [row["error"] for row in rows if "error" in row]
    assert losses == [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] / 5
    assert [row["step"] for row in rows if "test_weight" in row] == list(range(20, 201, 20))
    assert is_done(tmp_path)


def test_a_killed_run_continues_bit_equal(tmp_path: Path) -> None:
    """States are saved all the time, the run dies at 27, and another one takes over."""
    stage = replace(STAGE, ema=0.9)
    whole = finished(tmp_path / "whole", Line(), stage)
    with pytest.raises(KeyboardInterrupt):
        train(stage, Line(stop_after=27), tmp_path / "legs", save_every_s=0)
    saved = read_rest(tmp_path / "legs")
    assert saved is not None
    assert 1 <= saved["step"] <= 27
    assert not is_done(tmp_path / "legs")
    resumed = finished(tmp_path / "legs", Line(), stage)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_leg_stops_after_its_minutes(tmp_path: Path) -> None:
    assert not train(STAGE, Line(), tmp_path, minutes=0)
    state = read_rest(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert not is_done(tmp_path)


def test_a_finished_stage_does_nothing_unless_it_gets_longer(tmp_path: Path) -> None:
    finished(tmp_path, Line())
    task = Line()
    finished(tmp_path, task)
    assert task.calls == 0
    finished(tmp_path, task, replace(STAGE, steps=50))
    assert task.calls == 10


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """Each would delete the other's checkpoints; a run that was killed is in nobody's way."""
    finished(tmp_path, Line())
    assert (tmp_path / "lock").exists()
    with FileLock(tmp_path / "lock"), pytest.raises(ValueError, match="another run trains here"):
        train(replace(STAGE, steps=STAGE.steps + 2), Line(), tmp_path)
    assert train(replace(STAGE, steps=STAGE.steps + 2), Line(), tmp_path)


def test_frozen_means_unchanged(tmp_path: Path) -> None:
    before = Line().frozen.weight.clone()
    assert torch.equal(finished(tmp_path, Line())["frozen.weight"], before)


def test_a_broken_batch_changes_nothing_but_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = finished(tmp_path, Line(broken_step=35))
    assert torch.isfinite(weights["line.weight"]).all()
    assert weights["line.weight"].item() != Line().line.weight.item()
    last = curve(tmp_path)[-2]
    assert np.isnan(last["error"])
    assert last["skipped"] == 5
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert told[0].startswith("step 36 is left out: the gradient norm is nan")
    assert "losses by rank: nan" in told[0]


def test_a_stage_that_diverged_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "MAX_SKIPPED", 7)
    task = Line(broken_step=20)
    with pytest.raises(ValueError, match="line has diverged"):
        train(STAGE, task, tmp_path, save_every_s=0)
    assert task.calls == 27


def test_a_spike_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A batch a thousand times as steep as usual must not move the weights."""
    task = Line(steep_step=30)
    finished(tmp_path, task)
    assert task.weights[30] == task.weights[31] != task.weights[32]
    assert max(row["gradient"] for row in curve(tmp_path) if "gradient" in row) > 50
    assert "step 31 is left out: the gradient norm is" in caplog.text


def test_averaged_weights_are_means_that_forget(tmp_path: Path) -> None:
    task, stage = Line(), replace(STAGE, ema=0.8)
    best = finished(tmp_path, task, stage)["line.weight"].item()
    expected = task.weights[0]
    for index, weight in enumerate([*task.weights[1:], task.line.weight.item()]):
        decay = min(0.8, (index + 1) / (index + 10))
        expected = decay * expected + (1 - decay) * weight
    assert best == pytest.approx(expected, abs=1e-5)
    assert best != pytest.approx(task.line.weight.item(), abs=1e-3)
    # what is measured is the averaged weight, and training goes on with the others
    assert curve(tmp_path)[-1]["test_weight"] == best


def test_averaging_may_begin_later(tmp_path: Path) -> None:
    finished(tmp_path, Line())
    kept = best_weights(tmp_path)["line.weight"].item()
    task = Line()
    finished(tmp_path, task, replace(STAGE, steps=41, ema=0.5))
    assert task.weights[0] == kept
    mean = (kept + task.line.weight.item()) / 2
    assert best_weights(tmp_path)["line.weight"].item() == pytest.approx(mean, abs=1e-6)


def test_parts_of_a_step_count_by_their_weights(tmp_path: Path) -> None:
    """The first gradient of five parts is that of all their rows together, worked out apart."""
    stage = replace(STAGE, steps=1, parts=5)
    finished(tmp_path, Rows(), stage)
    task = Rows()
    parts = [task.batch(np.random.default_rng((0, 0, part)), 8)["x"] for part in range(5)]
    assert len({len(part) for part in parts}) > 1
    x = torch.cat(parts)
    error = (task.line(x) - 3 * x + 1).square().mean()
    error.backward()
    gradients = [p.grad for p in task.line.parameters() if p.grad is not None]
    train(stage, Rows(), tmp_path / "logged", log_every=1)
    rows = curve(tmp_path / "logged")
    assert rows[0]["gradient"] == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm())
    assert rows[0]["loss"] == pytest.approx(error.item(), rel=1e-6)
    long = torch.cat([part for part in parts if len(part) > 3])
    assert rows[0]["long"] == pytest.approx(
        (Rows().line(long) - 3 * long + 1).square().mean().item(), rel=1e-6
    )


def test_a_loader_goes_on_behind_the_last_step(tmp_path: Path) -> None:
    stage = replace(STAGE, parts=2, steps=20)
    whole = Numbers()
    train(stage, Line(), tmp_path / "whole", loader=whole)
    assert whole.given == list(range(1, 41))
    legs: list[int] = []
    for _ in range(3):
        loader = Numbers()
        train(stage, Line(), tmp_path / "legs", loader=loader, minutes=0)
        legs += loader.given
    loader = Numbers()
    assert train(stage, Line(), tmp_path / "legs", loader=loader)
    assert legs + loader.given == whole.given
    first, second = (best_weights(tmp_path / name) for name in ("whole", "legs"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_end_of_the_data_is_the_end_of_the_stage(tmp_path: Path) -> None:
    stage = replace(STAGE, parts=4)  # 50 batches are 12 steps and a half
    loader = Numbers()
    assert train(stage, Line(), tmp_path, loader=loader)
    assert len(loader.given) == 50
    rest = read_rest(tmp_path)
    assert rest is not None
    assert rest["step"] == 13
    task = Line()
    assert train(stage, task, tmp_path, loader=Numbers())
    assert task.calls == 0


def test_idle_batches_count_for_nothing(tmp_path: Path) -> None:
    stage = replace(STAGE, parts=2, steps=6)
    train(stage, Line(), tmp_path / "idle", loader=Numbers(idle=(2, 7)), log_every=1)
    train(replace(stage, parts=1), Line(), tmp_path / "one", loader=Numbers(), log_every=1)
    idle, one = (curve(tmp_path / name) for name in ("idle", "one"))
    assert all(row["loss"] < 100 for row in idle[:6])
    assert [idle[0][name] for name in ("loss", "gradient")] == [
        one[0][name] for name in ("loss", "gradient")
    ]


def test_a_loader_of_other_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="serves rank 1 of 4, but this is rank 0 of 1"):
        train(STAGE, Line(), tmp_path, loader=Numbers(rank=1, world=4))


def test_a_task_without_batches_needs_a_loader(tmp_path: Path) -> None:
    class Silent(Line):
        batch = Task.batch

    with pytest.raises(NotImplementedError, match="Silent draws no batches; give a loader"):
        train(STAGE, Silent(), tmp_path)


def test_the_rate_warms_up_and_falls_to_its_end() -> None:
    rates = [_schedule(step, STAGE) for step in range(STAGE.steps + 1)]
    assert rates[0] == 0.25
    assert max(rates) == rates[4] == 1
    assert rates[-1] == pytest.approx(STAGE.final_rate)
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_a_stage_that_never_ran_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run that stage first"):
        best_weights(tmp_path)
    assert not is_done(tmp_path)
