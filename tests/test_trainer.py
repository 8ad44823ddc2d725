"""The training loop: legs, resuming, frozen parts, broken batches, averaged weights."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from thinktalk.train.checkpoint import load_state
from thinktalk.train.trainer import Stage, _schedule, best_weights, curve, is_done, train

STAGE = Stage("line", steps=40, learning_rate=0.05, batch_size=8, warmup_steps=4, bfloat16=False)


class Line:
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

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        return {"x": torch.from_numpy(rng.standard_normal((size, 1)).astype(np.float32))}

    def loss(self, batch: dict[str, Any], progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        target = 3 * batch["x"] - 1
        error = self.line(nn.functional.dropout(batch["x"], 0.1)) - target
        loss = error.square().mean()
        if self.calls == self.broken_step:
            loss = loss * torch.nan
        if self.calls == self.steep_step:
            loss = loss * 1000
        self.calls += 1
        return loss, {"error": loss}

    def evaluate(self) -> dict[str, float]:
        return {"weight": self.line.weight.item()}


def finished(folder: Path, task: Line, stage: Stage = STAGE) -> dict[str, Tensor]:
    assert train(stage, task, folder, log_every=10, evaluate_every=20)
    return best_weights(folder)


def test_it_learns_logs_and_ends(tmp_path: Path) -> None:
    weights = finished(tmp_path, Line(), replace(STAGE, steps=200))
    assert weights["line.weight"].item() == pytest.approx(3, abs=0.4)
    rows = curve(tmp_path)
    losses = [row["error"] for row in rows if "error" in row]
    assert losses[-1] < losses[0] / 5
    assert [row["step"] for row in rows if "test_weight" in row] == list(range(20, 201, 20))
    assert is_done(tmp_path)


def test_a_killed_run_continues_bit_equal(tmp_path: Path) -> None:
    """The state of step 20 is saved, the run dies at 27, and another process takes over."""
    stage = replace(STAGE, ema=0.9)
    whole = finished(tmp_path / "whole", Line(), stage)
    with pytest.raises(KeyboardInterrupt):
        train(stage, Line(stop_after=27), tmp_path / "legs", save_every_s=0)
    saved = load_state(tmp_path / "legs", device="cpu")
    assert saved is not None
    assert saved["step"] == 27
    assert not is_done(tmp_path / "legs")
    resumed = finished(tmp_path / "legs", Line(), stage)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_half_written_state_is_never_read(tmp_path: Path) -> None:
    whole = finished(tmp_path, Line())
    (tmp_path / "state.pt.part").write_bytes(b"the machine went down here")
    assert all(torch.equal(whole[name], value) for name, value in best_weights(tmp_path).items())


def test_a_leg_stops_after_its_minutes(tmp_path: Path) -> None:
    assert not train(STAGE, Line(), tmp_path, minutes=0)
    state = load_state(tmp_path, device="cpu")
    assert state is not None
    assert state["step"] == 1


def test_frozen_means_unchanged(tmp_path: Path) -> None:
    before = Line().frozen.weight.clone()
    assert torch.equal(finished(tmp_path, Line())["frozen.weight"], before)


def test_a_broken_batch_changes_nothing_but_the_log(tmp_path: Path) -> None:
    weights = finished(tmp_path, Line(broken_step=5))
    assert torch.isfinite(weights["line.weight"]).all()
    assert np.isnan(curve(tmp_path)[0]["error"])


def test_a_spike_is_left_out(tmp_path: Path) -> None:
    """A batch a thousand times as steep as usual must not move the weights."""
    calm = finished(tmp_path / "calm", Line())
    spiked = finished(tmp_path / "spiked", Line(steep_step=30))
    assert max(row["gradient"] for row in curve(tmp_path / "spiked") if "gradient" in row) > 50
    assert torch.allclose(calm["line.weight"], spiked["line.weight"], atol=0.1)


def test_averaged_weights_lag_behind(tmp_path: Path) -> None:
    stage = replace(STAGE, ema=0.99)
    finished(tmp_path, Line(), stage)
    state = load_state(tmp_path, device="cpu")
    assert state is not None
    assert not torch.equal(state["averaged"]["line.weight"], state["module"]["line.weight"])
    assert torch.equal(best_weights(tmp_path)["line.weight"], state["averaged"]["line.weight"])


def test_the_rate_warms_up_and_falls_to_its_end() -> None:
    rates = [_schedule(step, STAGE) for step in range(STAGE.steps + 1)]
    assert rates[0] == 0.25
    assert max(rates) == rates[4] == 1
    assert rates[-1] == pytest.approx(STAGE.final_rate)
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_a_stage_that_never_ran_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run that stage first"):
        best_weights(tmp_path)
