"""The training loop of every stage: a stage (numbers) and a task (data and loss) in, weights out.

On one process, or on many that torchrun launched; the numbers are the same. A leg may end at any
moment: batches and random draws depend on (seed, step, part) or on the state of the data alone, so
a resumed leg continues exactly where the last checkpoint stood.
"""

import math
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from thinktalk.parallel import Ranks, Root, compile_blocks, join, local, recompute, shard, whole
from thinktalk.train.checkpoint import Checkpoints, read_rest, training_tensors
from thinktalk.train.feed import Batches, drawn, given, part_numbers
from thinktalk.train.journal import LOSS, Journal

SPIKE = 5.0  # times the usual gradient norm: more is taken for an accident
MAX_SKIPPED = 100  # steps in a row; then nothing will get better


@dataclass(frozen=True)
class Stage:
    """The numbers of one training stage."""

    name: str
    steps: int
    learning_rate: float
    batch_size: int  # of every part
    parts: int = 0  # batches of a step, shared by all ranks; 0: one for each of the first leg
    warmup_steps: int = 200
    final_rate: float = 0.02  # of learning_rate, where the cosine ends
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    bfloat16: bool = True  # matrix products in bfloat16 autocast
    seed: int = 0
    # What costs or saves memory and time and leaves the result alone:
    recompute: bool = False  # activations of a block are computed again in the backward pass
    compile: str = ""  # backend of torch.compile for the blocks, such as "inductor"


class Task:
    """What a stage trains and on what. To be subclassed; a task serves one call of train().

    module: trained is what requires a gradient; all of it is saved.
    companions: networks that the loss needs besides, which are neither trained nor saved; one may
        contain `module`, as additions to it.
    """

    module: nn.Module
    companions: tuple[nn.Module, ...] = ()

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        """One batch, drawn with rng alone; tensors on the CPU. Not called where a loader gives
        them."""
        raise NotImplementedError(f"{type(self).__name__} draws no batches; give a loader")

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and figures to log, both means over what `weight` counts.

        Every rank must use the same networks in the same order, whatever its batch holds.
        """
        raise NotImplementedError

    def weight(self, batch: dict[str, Any]) -> float:
        """How much the batch counts beside the others of its step, such as its learned tokens."""
        return 1.0

    def evaluate(self) -> dict[str, float]:
        """Figures on held-out data, logged now and then; the same on every rank."""
        return {}

    def figures_over(self, batches: Iterable[dict[str, Any]]) -> dict[str, float]:
        """The loss's figures over all batches, each counted by its weight; none without batches."""
        device = next(self.module.parameters()).device
        sums: dict[str, float] = {}
        total = 0.0
        for batch in batches:
            count = self.weight(batch)
            for name, value in self.loss(to_device(batch, device))[1].items():
                sums[name] = sums.get(name, 0.0) + count * value.item()
            total += count
        return {name: value / total for name, value in sums.items()} if total else {}


def train(
    stage: Stage,
    task: Task,
    out: Path,
    *,
    loader: Batches | None = None,
    device: str = "cpu",
    minutes: float = math.inf,
    log_every: int = 20,
    evaluate_every: int = 500,
    save_every_s: float = 60.0,
    keep: int = 2,
    board: bool = False,
) -> bool:
    """Runs until the stage is done (True) or `minutes` have passed (False); resumes from `out`.

    loader: gives the batches, for this rank as parallel.join() tells it; else the task draws them.
    Its end is the end of the stage, too. keep: how many checkpoints are left in `out`. board:
    writes for TensorBoard, too. Raises ValueError if nothing can be learned or written any more,
    and where another run is at work in `out`.
    """
    began = saved = time.monotonic()
    ranks = join(device)
    training = Training(stage, task, ranks)
    with _alone_in(out, ranks), Checkpoints(out, ranks, keep=keep) as checkpoints:
        training.resume(checkpoints, loader)
        if training.is_done:
            return True
        with (
            training.journal(out, board=board) as journal,
            closing(training.steps(loader)) as steps,
        ):
            for step in steps:
                training.step(step, journal)
                number = training.num_steps
                if number % log_every == 0:
                    journal.row(number)
                if number % evaluate_every == 0:
                    journal.evaluated(number, training.evaluate())
                now = time.monotonic()
                is_due = now - saved > save_every_s and not checkpoints.is_busy
                over, is_due = ranks.as_first((now - began > 60 * minutes, is_due))
                if over and number < stage.steps:
                    break
                if is_due and number < stage.steps:
                    training.save(checkpoints, loader)
                    saved = now
            else:
                training.is_done = True
                if training.num_steps % evaluate_every:
                    journal.evaluated(training.num_steps, training.evaluate())
            training.save(checkpoints, loader)
    return training.is_done


@contextmanager
def _alone_in(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keeps other runs out of the folder: each would delete the other's checkpoints. A process
    that is killed lets go."""
    lock = FileLock(folder / "lock")
    if ranks.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lock.acquire(timeout=0)
    if not ranks.as_first(lock.is_locked):
        raise ValueError(f"{folder}: another run trains here; wait for its end, or stop it")
    try:
        yield
    finally:
        lock.release()


class Training:
    """A stage under way: the networks, the optimizer, the averaged weights, and how far it is."""

    def __init__(self, stage: Stage, task: Task, ranks: Ranks):
        self.stage, self.task, self.ranks = stage, task, ranks
        self.root = Root(_separate(task.module, task.companions))
        ranks.same_start(self.root)
        if stage.compile:
            compile_blocks(self.root, backend=stage.compile)
        if stage.recompute:
            recompute(self.root)
        shard(self.root, ranks, bfloat16=stage.bfloat16)
        self.trainable = [p for p in task.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            _decay_groups(self.trainable, stage.weight_decay),
            lr=stage.learning_rate,
            betas=stage.betas,
            fused=True,
        )
        self.averaged = _copy(task.module) if stage.ema else None
        self.usual = torch.zeros(())  # the gradient norm to expect; 0 before the first step
        self.parts = stage.parts or ranks.world
        self.num_steps = self.num_skipped = 0
        self.is_done = False

    def resume(self, checkpoints: Checkpoints, loader: Batches | None) -> None:
        rest = checkpoints.restore(self.task.module, self.optimizer, self.averaged)
        if rest is not None:
            self.num_steps = rest["step"]
            ended = rest["done"] and self.num_steps < rest["stage"]["steps"]  # so did the data
            self.is_done = ended or self.num_steps >= self.stage.steps
            self.usual.fill_(rest["usual"])
            self.parts = self.stage.parts or rest["parts"]
            if loader is not None and rest["data"] is not None:
                loader.load_state(rest["data"])
        if self.parts % self.ranks.world:
            raise ValueError(
                f"a step of {self.stage.name} has {self.parts} parts, which {self.ranks.world} "
                "ranks cannot share evenly; launch another number of ranks, or set the stage's "
                "parts to a multiple of it"
            )

    def save(self, checkpoints: Checkpoints, loader: Batches | None) -> None:
        rest = {
            "stage": asdict(self.stage),
            "step": self.num_steps,
            "usual": self.usual.item(),
            "parts": self.parts,
            "data": None if loader is None else loader.state(),
            "done": self.is_done,
        }
        tensors = training_tensors(self.task.module, self.optimizer, self.averaged)
        checkpoints.save(tensors, rest)

    def journal(self, out: Path, *, board: bool) -> Journal:
        stage = self.stage
        return Journal(
            out,
            self.ranks,
            name=stage.name,
            steps=stage.steps,
            first=self.num_steps,
            board=board,
        )

    def steps(self, loader: Batches | None) -> Generator[list[dict[str, Any]], None, None]:
        """This rank's parts of every step that is left."""
        stage, left = self.stage, range(self.num_steps, self.stage.steps)
        if loader is not None:
            return given(loader, ranks=self.ranks, parts=self.parts, count=len(left))
        return drawn(
            self.task.batch,
            ranks=self.ranks,
            seed=stage.seed,
            size=stage.batch_size,
            parts=self.parts,
            steps=left,
        )

    def step(self, parts: list[dict[str, Any]], journal: Journal) -> None:
        """One step of the optimizer, unless the gradient is an accident."""
        stage, index = self.stage, self.num_steps
        for group in self.optimizer.param_groups:
            group["lr"] = stage.learning_rate * _schedule(index, stage)
        self.optimizer.zero_grad()
        losses = []
        for number, share, batch in zip(
            part_numbers(self.ranks, self.parts), self._shares(parts), parts, strict=False
        ):
            torch.manual_seed(stage.seed * 1_000_003 + index + number * 10**12)
            batch = to_device(batch, self.ranks.device)
            with self._autocast():
                loss, figures = self.root(partial(self.task.loss, batch))
            (loss * (share * self.ranks.world)).backward()  # sharding takes the mean over ranks
            journal.part(share, {LOSS: loss} | figures)
            losses.append(loss.detach())
        norm = whole(nn.utils.clip_grad_norm_(self.trainable, stage.gradient_clip)).cpu()
        accident = _accident(norm, self.usual, index)
        if accident is None:
            self.optimizer.step()
            self.num_skipped = 0
        else:
            journal.skipped(index + 1, accident, [loss.item() for loss in losses])
            self._give_up_after_many()
        if self.averaged is not None:
            _average(self.averaged, self.task.module, min(stage.ema, (index + 1) / (index + 10)))
        self.num_steps += 1
        journal.step(norm.item(), skipped=accident is not None)

    def evaluate(self) -> dict[str, float]:
        """With the averaged weights where there are any."""
        module = self.task.module
        _exchange(module, self.averaged)
        module.eval()
        # whole weights are in bfloat16 then, and need what autocast does
        sharded = self.ranks.world > 1
        with torch.no_grad(), self._autocast(on=sharded):
            figures = self.root(self.task.evaluate)
        self.root.spread_again()
        module.train()
        _exchange(module, self.averaged)
        return figures

    def _shares(self, parts: list[dict[str, Any]]) -> list[float]:
        """What every part of this rank counts for; those of all ranks make 1."""
        weights = [0.0 if part.get("idle", False) else self.task.weight(part) for part in parts]
        total = self.ranks.total(sum(weights))
        return [weight / total if total else 0.0 for weight in weights]

    def _autocast(self, *, on: bool = True) -> torch.autocast:
        enabled = self.stage.bfloat16 and on
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=enabled)

    def _give_up_after_many(self) -> None:
        self.num_skipped += 1
        if self.num_skipped >= MAX_SKIPPED:
            raise ValueError(
                f"{MAX_SKIPPED} steps in a row were left out, so {self.stage.name} has diverged; "
                "remove the last checkpoint and go on with a lower learning rate"
            )


def is_done(folder: Path) -> bool:
    rest = read_rest(folder)
    return rest is not None and rest["done"]


def to_device(batch: dict[str, Any], device: str | torch.device) -> dict[str, Any]:
    """A batch of tensors and lists of tensors, moved."""
    return {
        key: [v.to(device) for v in value] if isinstance(value, list) else value.to(device)
        for key, value in batch.items()
    }


def _separate(module: nn.Module, companions: tuple[nn.Module, ...]) -> list[nn.Module]:
    """All of them, but not what is a part of another."""
    inside = {id(weight) for companion in companions for weight in companion.parameters()}
    is_inside = all(id(weight) in inside for weight in module.parameters())
    return list(companions) if is_inside else [module, *companions]


def _accident(norm: Tensor, usual: Tensor, step: int) -> str | None:
    """What is wrong with a gradient norm; moves `usual`, the running mean, towards it."""
    if not torch.isfinite(norm):
        return f"the gradient norm is {norm:.4g}"
    largest = SPIKE * usual if usual > 0 else norm
    before = usual.item()
    usual.lerp_(norm.minimum(largest), 1 / min(step + 1, 50))
    return f"the gradient norm is {norm:.4g}, usually {before:.4g}" if norm > largest else None


def _schedule(index: int, stage: Stage) -> float:
    """Linear warm-up, then a cosine down to final_rate."""
    if index < stage.warmup_steps:
        return (index + 1) / stage.warmup_steps
    part = (index - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    return stage.final_rate + (1 - stage.final_rate) * 0.5 * (1 + math.cos(math.pi * part))


def _decay_groups(trainable: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and other vectors do not."""
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def _average(averaged: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    current = module.state_dict()
    for name, value in averaged.items():
        if value.is_floating_point():
            local(value).lerp_(local(current[name]), 1 - decay)


@torch.no_grad()
def _exchange(module: nn.Module, averaged: dict[str, Tensor] | None) -> None:
    """Puts the averaged weights into the module and those of the module into `averaged`."""
    if averaged is None:
        return
    for name, value in module.state_dict().items():
        ours, theirs = local(value), local(averaged[name])
        kept = ours.clone()
        ours.copy_(theirs)
        theirs.copy_(kept)
