"""What a training run tells: figures of its steps in; a bar, out/log.jsonl and TensorBoard out.

All ranks keep one and call it alike; rank 0 writes the means over all of them.
"""

import json
import logging
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from thinktalk.parallel import Ranks
from thinktalk.train.board import Board

LOG = logging.getLogger(__name__)

LOG_FILE, BOARD_FOLDER = "log.jsonl", "board"
LOSS, GRADIENT, SKIPPED = "loss", "gradient", "skipped"
BAR_INTERVAL_S = 5


class Journal:
    """Figures are means: over the parts of a step by their shares, over steps equally."""

    def __init__(
        self, out: Path, ranks: Ranks, *, name: str, steps: int, first: int, board: bool = False
    ):
        self.out, self.ranks = out, ranks
        self._began = time.monotonic()
        self._parts: list[tuple[float, dict[str, Tensor]]] = []  # since the last row
        self._steps: list[dict[str, float]] = []
        is_first = ranks.is_first
        self._board = Board(out / BOARD_FOLDER, name=name) if board and is_first else None
        self._bar = tqdm(
            total=steps, initial=first, desc=name, mininterval=BAR_INTERVAL_S, disable=not is_first
        )

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def part(self, share: float, figures: dict[str, Tensor]) -> None:
        """Of a part of the step; share: what it counts for among all parts of all ranks."""
        self._parts.append((share, {name: value.detach() for name, value in figures.items()}))

    def step(self, gradient: float, *, skipped: bool) -> None:
        self._steps.append({GRADIENT: gradient, SKIPPED: float(skipped)})
        self._bar.update()

    def skipped(self, number: int, reason: str, losses: list[float]) -> None:
        """Tells that a step is left out; losses: those of this rank's parts."""
        of_ranks = self.ranks.gathered(losses)
        if self.ranks.is_first:
            shown = ", ".join(f"{loss:.4g}" for rank in of_ranks for loss in rank)
            LOG.warning("step %d is left out: %s; losses by rank: %s", number, reason, shown)

    def row(self, number: int) -> None:
        """Writes the means since the last row; number: of the steps that are done."""
        figures = self._means()
        num_skipped = int(sum(step[SKIPPED] for step in self._steps))
        figures[GRADIENT] = sum(step[GRADIENT] for step in self._steps) / len(self._steps)
        self._steps.clear()
        seconds = {"seconds": round(time.monotonic() - self._began, 1)}
        left_out = {SKIPPED: num_skipped} if num_skipped else {}
        self._write({"step": number} | seconds | figures | left_out)
        self._bar.set_postfix({LOSS: f"{figures[LOSS]:.4g}"}, refresh=False)

    def evaluated(self, number: int, figures: dict[str, float]) -> None:
        """Figures on held-out data, the same on all ranks."""
        if figures:
            self._write({"step": number} | {f"test_{name}": v for name, v in figures.items()})

    def _means(self) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        shares: dict[str, float] = defaultdict(float)  # not every part has every figure
        names = dict.fromkeys(name for _, figures in self._parts for name in figures)
        for name in names:
            having = [(share, figures[name]) for share, figures in self._parts if name in figures]
            values = torch.stack([value.float() for _, value in having]).tolist()
            for (share, _), value in zip(having, values, strict=True):
                # what counts for nothing may be anything, even no number
                sums[name] += share * value if share else 0.0
                shares[name] += share
        self._parts.clear()
        for others_sums, others_shares in self._of_other_ranks(sums, shares):
            for name in others_sums:
                sums[name] += others_sums[name]
                shares[name] += others_shares[name]
        return {name: sums[name] / shares[name] if shares[name] else math.nan for name in sums}

    def _of_other_ranks(
        self, sums: dict[str, float], shares: dict[str, float]
    ) -> list[tuple[dict[str, float], dict[str, float]]]:
        gathered = self.ranks.gathered((dict(sums), dict(shares)))
        return gathered[: self.ranks.rank] + gathered[self.ranks.rank + 1 :]

    def _write(self, row: dict[str, Any]) -> None:
        if not self.ranks.is_first:
            return
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / LOG_FILE).open("a") as file:
                file.write(json.dumps(row) + "\n")
            if self._board is not None:
                self._board.add(row["step"], {n: v for n, v in row.items() if n != "step"})
        except OSError as error:  # no reason to lose what was trained
            LOG.warning("a row of %s is lost: %s", self.out / LOG_FILE, error)


def curve(folder: Path) -> list[dict[str, Any]]:
    """The rows of a stage's log."""
    with (folder / LOG_FILE).open() as file:
        return [json.loads(line) for line in file]
