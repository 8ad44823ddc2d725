"""How far the states that the Talker speaks from move while the Thinker alone is trained.

A few rows of the training data are read before training begins; what the Talker would be handed is
kept in the run folder, and compared whenever figures are taken.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from thinktalk.model.talker import prompt_rows
from thinktalk.model.thinker import Thinker
from thinktalk.train.data import Dataset
from thinktalk.train.packing import PADDING, collate
from thinktalk.train.reading import read
from thinktalk.train.trainer import to_device

NUM_ROWS, LONGEST = 4, 2048  # rows that are read, and their tokens
FILE = "states.safetensors"


class Drift:
    """kept: the folder of the run; what the first leg found there is what later ones go by, as long
    as they read the same rows."""

    def __init__(self, thinker: Thinker, dataset: Dataset, *, kept: Path):
        self.batches = [_batch(dataset, row, thinker) for row in _rows(dataset)]
        path = kept / FILE
        before = load_file(path) if path.exists() else {}
        if not self._reads(before):
            with torch.no_grad():
                states = {f"states{n}": _states(thinker, b) for n, b in enumerate(self.batches)}
            before = states | {f"ids{n}": b["ids"] for n, b in enumerate(self.batches)}
            part = path.with_suffix(".part")
            save_file(before, part)
            part.replace(path)
        self.before = [before[f"states{number}"] for number in range(len(self.batches))]

    def _reads(self, before: dict[str, Tensor]) -> bool:
        """Whether the kept states are those of these rows."""
        wanted = {f"ids{n}": b["ids"] for n, b in enumerate(self.batches)}
        found = {name: ids for name, ids in before.items() if name.startswith("ids")}
        return found.keys() == wanted.keys() and all(
            torch.equal(ids, found[name]) for name, ids in wanted.items()
        )

    @torch.no_grad()
    def measure(self, thinker: Thinker) -> float:
        """The mean over all positions of |now - before| / |before|."""
        moved = []
        for batch, before in zip(self.batches, self.before, strict=True):
            now = _states(thinker, to_device(batch, thinker.lm_head.weight.device))
            moved.append((now - before).norm(dim=-1) / before.norm(dim=-1))
        return torch.cat(moved).mean().item()


def _rows(dataset: Dataset) -> list[int]:
    """The first rows of the first epoch that are not too long and not bad."""
    short = (row for row in dataset.epoch(0, seed=0) if dataset.lengths[row] <= LONGEST)
    return list(islice((int(row) for row in short if dataset.examples(int(row))), NUM_ROWS))


def _batch(dataset: Dataset, row: int, thinker: Thinker) -> dict[str, Any]:
    example = dataset.examples(row)[0]
    pad_id = thinker.config.pad_token_id
    return collate([example], samples=[row], pad_id=pad_id, packed=False)


def _states(thinker: Thinker, batch: dict[str, Any]) -> Tensor:
    """What the Talker would read of a row: float32 [tokens, C] on the CPU."""
    embeddings, hidden = read(thinker, batch)
    media = torch.tensor(thinker.config.media_token_ids, device=embeddings.device)
    rows = prompt_rows(embeddings, hidden, torch.isin(batch["ids"], media))
    return rows[batch["segments"] != PADDING].float().cpu()
