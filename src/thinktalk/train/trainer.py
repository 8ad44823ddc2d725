"""The training loop of every stage: a stage (numbers) and a task (data and loss) in, weights out.

A leg may end at any moment: batches and random draws depend on (seed, step) alone, so a resumed
leg continues exactly where the last checkpoint stood.
"""

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from thinktalk.train.checkpoint import load_state, save_state

SPIKE = 5.0  # times the usual gradient norm: more is taken for an accident


@dataclass(frozen=True)
class Stage:
    """The numbers of one training stage."""

    name: str
    steps: int
    learning_rate: float
    batch_size: int
    warmup_steps: int = 200
    final_rate: float = 0.02  # of learning_rate, where the cosine ends
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    bfloat16: bool = True  # matrix products in bfloat16 autocast
    seed: int = 0


class Task(Protocol):
    """What a stage trains and on what."""

    @property
    def module(self) -> nn.Module:
        """Its trainable parameters are those with requires_grad."""
        ...

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        """One batch, drawn with rng alone; tensors on the CPU."""
        ...

    def loss(self, batch: dict[str, Any], progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and figures to log; progress goes from 0 to 1 over the stage."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Figures on held-out data, logged now and then."""
        ...


def train(
    stage: Stage,
    task: Task,
    out: Path,
    *,
    device: str = "cpu",
    minutes: float = math.inf,
    log_every: int = 20,
    evaluate_every: int = 500,
    save_every_s: float = 60.0,
) -> bool:
    """Runs until the stage is done (True) or `minutes` have passed (False); resumes from `out`.

    Leaves the last state in out/state.pt and the curve in out/log.jsonl.
    """
    module = task.module.to(device)
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        _decay_groups(module, stage.weight_decay),
        lr=stage.learning_rate,
        betas=stage.betas,
        fused=True,
    )
    averaged = _copy(module) if stage.ema else None
    usual = torch.zeros(())  # the gradient norm to expect; 0 before the first step
    step = _resume(out, module, optimizer, averaged, usual, device)
    began = saved = time.monotonic()
    figures: list[dict[str, Tensor]] = []
    bar = tqdm(total=stage.steps, initial=step, desc=stage.name, mininterval=5)
    for index, batch in _batches(task, stage, step, device):
        progress = index / stage.steps
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _schedule(index, stage)
        torch.manual_seed(stage.seed * 1_000_003 + index)
        with torch.autocast(device, torch.bfloat16, enabled=stage.bfloat16):
            loss, shown = task.loss(batch, progress)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trainable, stage.gradient_clip).cpu()
        if _is_usual(norm, usual, step):  # else it is left out, and shows in the log as it is
            optimizer.step()
        if averaged is not None:
            _average(averaged, module, min(stage.ema, (index + 1) / (index + 10)))
        step = index + 1
        figures.append({k: v.detach() for k, v in shown.items()} | {"gradient": norm})
        bar.update()
        if step % log_every == 0:
            _log(out, step, figures, time.monotonic() - began)
            figures.clear()
        over = time.monotonic() - began > 60 * minutes
        if step % evaluate_every == 0 or step == stage.steps:
            _evaluate(out, step, task, averaged)
        if step == stage.steps or over or time.monotonic() - saved > save_every_s:
            _save(out, stage, step, module, optimizer, averaged, usual)
            saved = time.monotonic()
        if over:
            break
    bar.close()
    return step == stage.steps


def best_weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights of a stage's folder: the averaged ones where there are any."""
    state = load_state(folder, device="cpu")
    if state is None:
        raise ValueError(f"{folder} holds no training state; run that stage first")
    return state["averaged"] or state["module"]


def is_done(folder: Path) -> bool:
    state = load_state(folder, device="cpu")
    return state is not None and state["step"] >= state["stage"]["steps"]


def _batches(
    task: Task, stage: Stage, first: int, device: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Batches in step order, the next one made in a thread while this one is used."""

    def make(index: int) -> dict[str, Any]:
        return task.batch(np.random.default_rng((stage.seed, index)), stage.batch_size)

    if first >= stage.steps:
        return
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, first)
        for index in range(first, stage.steps):
            batch = coming.result()
            if index + 1 < stage.steps:
                coming = pool.submit(make, index + 1)
            yield index, to_device(batch, device)


def to_device(batch: dict[str, Any], device: str | torch.device) -> dict[str, Any]:
    """A batch of tensors and lists of tensors, moved."""
    return {
        key: [v.to(device) for v in value] if isinstance(value, list) else value.to(device)
        for key, value in batch.items()
    }


def _is_usual(norm: Tensor, usual: Tensor, step: int) -> bool:
    """Whether a gradient norm is no accident; moves `usual`, the running mean, towards it."""
    if not torch.isfinite(norm):
        return False
    largest = SPIKE * usual if usual > 0 else norm
    usual.lerp_(norm.minimum(largest), 1 / min(step + 1, 50))
    return bool(norm <= largest)


def _schedule(index: int, stage: Stage) -> float:
    """Linear warm-up, then a cosine down to final_rate."""
    if index < stage.warmup_steps:
        return (index + 1) / stage.warmup_steps
    part = (index - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    return stage.final_rate + (1 - stage.final_rate) * 0.5 * (1 + math.cos(math.pi * part))


def _decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and other vectors do not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
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
            value.lerp_(current[name], 1 - decay)


def _resume(
    out: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor] | None,
    usual: Tensor,
    device: str,
) -> int:
    state = load_state(out, device=device)
    if state is None:
        return 0
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    if averaged is not None:
        averaged.update(state["averaged"])
    usual.copy_(state["usual"])
    return state["step"]


def _save(
    out: Path,
    stage: Stage,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor] | None,
    usual: Tensor,
) -> None:
    state = {
        "stage": asdict(stage),
        "step": step,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averaged": averaged,
        "usual": usual,
    }
    save_state(out, state)


def _evaluate(out: Path, step: int, task: Task, averaged: dict[str, Tensor] | None) -> None:
    module = task.module
    kept = _copy(module) if averaged is not None else None
    if averaged is not None:
        module.load_state_dict(averaged)
    module.eval()
    with torch.no_grad():
        figures = task.evaluate()
    module.train()
    if kept is not None:
        module.load_state_dict(kept)
    _write(out, {"step": step} | {f"test_{k}": v for k, v in figures.items()})


def _log(out: Path, step: int, figures: list[dict[str, Tensor]], seconds: float) -> None:
    names = dict.fromkeys(name for row in figures for name in row)  # not every batch has all
    shown = {n: torch.stack([f[n].float() for f in figures if n in f]) for n in names}
    means = {n: values.mean().item() for n, values in shown.items()}
    _write(out, {"step": step, "seconds": round(seconds, 1)} | means)


def _write(out: Path, row: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def curve(folder: Path) -> list[dict[str, Any]]:
    """The rows of a stage's log."""
    with (folder / "log.jsonl").open() as file:
        return [json.loads(line) for line in file]
