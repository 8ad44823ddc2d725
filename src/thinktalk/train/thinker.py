"""The Thinker's task in the playroom: typed and spoken questions to text."""

from typing import Any

import numpy as np
import torch

from thinktalk.model.thinker import Thinker
from thinktalk.train.align import masked
from thinktalk.train.conversations import IGNORED, Dialogues, collate
from thinktalk.train.omni import OmniTask
from thinktalk.train.reading import read
from thinktalk.train.trainer import to_device

TOOL_BATCH_SHARE = 0.06  # their prompts are five times as long, so they have batches of their own
NUM_TEST_DIALOGUES = 64


class ThinkerTask(OmniTask):
    """Typed and, in a share of the batches, spoken questions, drawn anew for every batch."""

    def __init__(
        self, thinker: Thinker, dialogues: Dialogues, test: Dialogues, *, spoken_share: float
    ):
        super().__init__(thinker)
        self.spoken_share = spoken_share
        self.dialogues, self.test = dialogues, test
        rows = dialogues.spoken.rows
        self.with_tools = [row for row in rows if row["case"]["tools"]]
        self.without_tools = [row for row in rows if not row["case"]["tools"]]
        thinker.visual.requires_grad_(False)  # this world has no pictures yet

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        """All spoken, or all typed and twice as many: neighbours in length, so little padding."""
        if rng.random() < TOOL_BATCH_SHARE:
            task, rows, size = "tool", self.with_tools, size // 4
        else:
            task, rows = None, self.without_tools
        if rows and rng.random() < self.spoken_share:
            chosen = rng.integers(len(rows), size=size)
            drawn = [self.dialogues.heard(rows[row], rng) for row in chosen]
        else:
            drawn = [self.dialogues.typed(rng, task=task) for _ in range(2 * size)]
        mels = [masked(mel, rng) for d in drawn for mel in d.mels]
        return self._tensors(drawn, mels)

    def evaluate(self) -> dict[str, float]:
        """Teacher-forced: the share of held-out replies in which every token is right."""
        rng = np.random.default_rng(0)
        rows = self.test.spoken.rows[:NUM_TEST_DIALOGUES]
        spoken = [self.test.heard(row, rng) for row in rows]
        typed = [self.test.typed(rng) for _ in range(NUM_TEST_DIALOGUES)]
        figures = {}
        for name, drawn in (("spoken", spoken), ("typed", typed)):
            batch = self._tensors(drawn, [mel for d in drawn for mel in d.mels])
            batch = to_device(batch, self.thinker.lm_head.weight.device)
            right = self.thinker.logits(read(self.thinker, batch)[1]).argmax(-1) == batch["labels"]
            right |= batch["labels"] == IGNORED
            figures[name] = right.all(1).float().mean().item()
        return figures

    def _tensors(self, drawn: list[Any], mels: list[np.ndarray]) -> dict[str, Any]:
        batch: dict[str, Any] = collate(drawn, pad_id=self.thinker.config.pad_token_id)
        ids = batch["ids"]
        return batch | {
            "mels": [torch.from_numpy(mel) for mel in mels],
            "positions": torch.arange(ids.shape[1]).expand(3, *ids.shape),
            "segments": torch.arange(len(ids))[:, None].expand_as(ids),
        }
