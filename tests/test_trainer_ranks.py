"""Training on two real ranks: the numbers of one, accidents, kills, other numbers of ranks."""

import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from data_numbers import dataset
from ranks import on_ranks, run_ranks
from torch import Tensor, nn

from thinktalk import parallel
from thinktalk.train.checkpoint import Checkpoints, best_weights, read_rest
from thinktalk.train.data import Loader
from thinktalk.train.journal import curve
from thinktalk.train.trainer import Stage, Task, train

STAGE = Stage(
    "guess",
    steps=12,
    learning_rate=0.02,
    batch_size=3,
    parts=2,
    warmup_steps=3,
    ema=0.9,
    bfloat16=False,
)
POISON = 16  # the number of a row


class Guess(Task):
    """Learns from every token which number it is; with dropout, so the torch RNG matters."""

    def __init__(self, *, poison: int | None = None):
        torch.manual_seed(2)
        self.table, self.head = nn.Embedding(50, 5), nn.Linear(5, 1)
        frozen = nn.Linear(3, 3).requires_grad_(False)
        self.module = nn.ModuleDict({"table": self.table, "head": self.head, "frozen": frozen})
        self.poison = poison
        self.seen: list[list[int]] = []
        self.weights: list[float] = []  # in front of every step

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(batch["samples"].tolist())
        self.weights.append(self.head.weight.sum().item() + self.table.weight.sum().item())
        rows = nn.functional.dropout(self.table(batch["ids"]), 0.2)
        error = (self.head(rows)[..., 0] - batch["ids"] / 50).square()
        error = error[batch["segments"] >= 0].mean()
        if self.poison in self.seen[-1]:
            error = error * torch.nan
        return error, {"error": error}

    def weight(self, batch: dict[str, Any]) -> float:
        return float((batch["segments"] >= 0).sum())

    def evaluate(self) -> dict[str, float]:
        return {"bias": self.head.bias.item()}


@dataclass
class Report:
    """What one rank saw in one folder."""

    seen: list[list[int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def leg(folder: Path, *, steps: int | None = None, poison: int | None = None) -> Report:
    """Goes on in the folder, for so many steps or to the end."""
    report = Report()
    for _ in range(1 if steps is None else steps):
        ranks = parallel.join()
        rows = dataset(37)  # 13 packs: an epoch ends within a step
        loader = Loader(rows, batch_size=3, rank=ranks.rank, world=ranks.world, seed=4, workers=1)
        task = Guess(poison=poison)
        minutes = float("inf") if steps is None else 0.0
        train(STAGE, task, folder, loader=loader, minutes=minutes, log_every=1, evaluate_every=6)
        report.seen += task.seen
        report.weights += task.weights
    return report


def killed(folder: Path) -> None:
    """The second rank dies while the state of step 7 is written."""
    save, synced = Checkpoints.save, os.fsync

    def die(handle: int) -> None:
        synced(handle)
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    def patched(self: Checkpoints, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        if rest["step"] == 7:
            self.finish()
            os.fsync = die
        save(self, tensors, rest)
        self.finish()

    Checkpoints.save = patched
    leg(folder, steps=8)


def scenarios(folder: Path) -> dict[str, Report]:
    """All that two ranks do."""
    reports = {"whole": leg(folder / "whole")}
    first = leg(folder / "legs", steps=5)
    second = leg(folder / "legs")
    reports["legs"] = Report(first.seen + second.seen, first.weights + second.weights)
    reports["two_then_one"] = leg(folder / "two_then_one", steps=5)
    reports["one_then_two"] = leg(folder / "one_then_two")
    reports["killed"] = leg(folder / "killed")
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("thinktalk").addHandler(handler)
    reports["poison"] = leg(folder / "poison", poison=POISON)
    reports["poison"].told = told
    return reports


@dataclass
class Done:
    folder: Path
    ranks: list[dict[str, Report]]
    alone: dict[str, Report]
    codes: list[int | None]
    step_of_death: int

    def seen(self, name: str) -> list[list[int]]:
        """The packs of both ranks in the order of the data."""
        parts = zip(*(report[name].seen for report in self.ranks), strict=True)
        return [pack for step in parts for pack in step]

    def differ(self, first: str, second: str) -> float:
        ours, theirs = (best_weights(self.folder / name) for name in (first, second))
        assert ours.keys() == theirs.keys()
        return max((ours[n] - theirs[n]).abs().max().item() for n in ours)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("ranks")
    _, codes = run_ranks(killed, folder / "killed")
    rest = read_rest(folder / "killed")
    assert rest is not None
    alone = {"whole": leg(folder / "alone"), "first": leg(folder / "one_then_two", steps=5)}
    ranks = on_ranks(scenarios, folder)
    alone["then"] = leg(folder / "two_then_one")
    return Done(folder, ranks, alone, codes, rest["step"])


def test_two_ranks_give_the_losses_of_one(done: Done) -> None:
    ours, theirs = (curve(done.folder / name) for name in ("whole", "alone"))
    assert len(ours) == len(theirs) == 14
    for row, expected in zip(ours, theirs, strict=True):
        for name in expected.keys() - {"seconds"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7)
    assert done.differ("whole", "alone") < 1e-5
    assert done.seen("whole") == done.alone["whole"].seen
    assert len(done.seen("whole")) == 24


def test_legs_continue_bit_equal_in_the_middle_of_an_epoch(done: Done) -> None:
    for ours in done.ranks:
        assert ours["legs"].seen == ours["whole"].seen
        assert ours["legs"].weights == ours["whole"].weights
    assert done.differ("legs", "whole") == 0
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in curve(done.folder / "legs")]
    whole = curve(done.folder / "whole")
    assert rows == [{k: v for k, v in row.items() if k != "seconds"} for row in whole]


def test_a_kill_while_two_ranks_save_costs_only_what_came_after(done: Done) -> None:
    assert done.codes[1] == -signal.SIGKILL
    assert done.step_of_death == 6
    for ours in done.ranks:
        assert ours["killed"].seen == ours["whole"].seen[6:]
        assert ours["killed"].weights == ours["whole"].weights[6:]
    assert done.differ("killed", "whole") == 0


def test_the_number_of_ranks_may_change(done: Done) -> None:
    whole = done.alone["whole"].seen
    assert done.seen("two_then_one") + done.alone["then"].seen == whole
    assert done.alone["first"].seen + done.seen("one_then_two") == whole
    assert done.differ("two_then_one", "alone") < 1e-5
    assert done.differ("one_then_two", "alone") < 1e-5


def test_frozen_parts_stay_bit_equal(done: Done) -> None:
    before = Guess().module.state_dict()
    after = best_weights(done.folder / "whole")
    for name in ("frozen.weight", "frozen.bias"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["table.weight"], after["table.weight"])


def test_a_broken_batch_of_one_rank_is_skipped_by_both(done: Done) -> None:
    first, second = (report["poison"] for report in done.ranks)
    assert first.weights == second.weights  # both see the same whole weights all the time
    assert all(weight == weight for weight in first.weights)
    steps = [
        step
        for step, packs in enumerate(zip(first.seen, second.seen, strict=True))
        if any(POISON in pack for pack in packs)
    ]
    assert steps == [4, 7]  # once an epoch
    still = [s for s in range(11) if first.weights[s] == first.weights[s + 1]]
    assert still == steps
    rows = curve(done.folder / "poison")
    assert [row["step"] - 1 for row in rows if row.get("skipped")] == steps
    assert len(first.told) == 2 and not second.told
    assert "the gradient norm is nan" in first.told[0]
    losses = first.told[0].split("losses by rank: ")[1].split(", ")
    assert [loss == "nan" for loss in losses].count(True) == 1


def uneven(folder: Path) -> str:
    try:
        leg_of_three = Stage("three", steps=2, learning_rate=0.1, batch_size=1, parts=3)
        train(leg_of_three, Guess(), folder)
    except ValueError as error:
        return str(error)
    return ""


def test_parts_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    for message in on_ranks(uneven, tmp_path):
        assert "a step of three has 3 parts, which 2 ranks cannot share evenly" in message


def test_torchrun_launches_it(done: Done, tmp_path: Path) -> None:
    script = tmp_path / "launched.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport torch\nfrom thinktalk import parallel\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_trainer_ranks import leg\n"
        "torch.set_num_threads(1)\nleg(Path(sys.argv[1]))\nparallel.leave()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(done.folder / "torchrun")]
    subprocess.run(command, check=True, capture_output=True)
    assert done.differ("torchrun", "whole") == 0
