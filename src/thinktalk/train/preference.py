"""Pairs of spoken replies in; a Talker that says more like the better ones out (DPO).

Batches are those of packing.collate, in which the rejected example of a row stands behind the
chosen one. Shapes: S samples, P pairs.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.model.talker import Talker
from thinktalk.model.thinker import Thinker
from thinktalk.train.examples import IGNORED
from thinktalk.train.rows import Row
from thinktalk.train.shards import Source
from thinktalk.train.speaking import CodecClasses, num_said, speak, think
from thinktalk.train.trainer import Task


class Scores(NamedTuple):
    """Logarithms of probabilities of whole replies, sums over their ids: [P] each."""

    chosen: Tensor
    rejected: Tensor


def preference_loss(policy: Scores, reference: Scores, *, beta: float) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7), the mean over pairs.

    -log sigmoid(beta ((log p(w) - log r(w)) - (log p(l) - log r(l)))), p the policy, r the frozen
    reference, w the chosen and l the rejected reply.
    """
    return -F.logsigmoid(beta * margins(policy, reference)).mean()


def margins(policy: Scores, reference: Scores) -> Tensor:
    """How much further the policy tells chosen from rejected than the reference does: [P]."""
    moved = (ours - theirs for ours, theirs in zip(policy, reference, strict=True))
    chosen, rejected = moved
    return chosen - rejected


class PreferenceTask(Task):
    """DPO on the codec ids of replies; the reference is the Talker as it was at the start.

    anchor: weight of the plain cross-entropy on the chosen replies beside it, which keeps their
    probability from falling with that of the rejected ones. plain: nothing but that cross-entropy,
    the control of an experiment: same rows, same steps, same work.
    """

    def __init__(
        self,
        talker: Talker,
        thinker: Thinker,
        *,
        num_codes: int,
        beta: float = 0.1,
        anchor: float = 0.0,
        plain: bool = False,
        held_out: Iterable[dict[str, Any]] = (),
    ):
        self.module = nn.ModuleDict({"talker": talker})
        self.talker, self.thinker = talker, thinker
        self.reference = deepcopy(talker).eval().requires_grad_(False)
        self.companions = (thinker, self.reference)
        self.beta, self.anchor, self.plain = beta, anchor, plain
        self.classes = CodecClasses(talker, num_codes=num_codes)
        self.held_out = list(held_out)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            rows = think(self.thinker, batch).rows
            reference = self._scores(self.reference, rows, batch)
        policy = self._scores(self.talker, rows, batch)
        apart = margins(policy, reference)
        preference = preference_loss(policy, reference, beta=self.beta)
        codec = -policy.chosen.sum() / max(_num_chosen(batch), 1)
        loss = codec if self.plain else preference + self.anchor * codec
        figures = {"preference": preference, "margin": apart.mean(), "codec": codec}
        return loss, figures | {"right": (apart > 0).float().mean()}

    def weight(self, batch: dict[str, Any]) -> float:
        return float(batch["rejected"].sum())

    def evaluate(self) -> dict[str, float]:
        """The same figures, over all held-out pairs alike."""
        return self.figures_over(self.held_out)

    def _scores(self, talker: Talker, rows: Tensor, batch: dict[str, Any]) -> Scores:
        said = speak(talker, self.thinker, rows, batch, classes=self.classes)
        logits = self.classes.logits(talker, said.hidden)
        each = -F.cross_entropy(logits, said.labels, ignore_index=IGNORED, reduction="none")
        sample = batch["spoken"][said.replies, 0]
        total = each.new_zeros(len(batch["samples"])).index_add(0, sample, each)
        rejected = batch["rejected"].nonzero()[:, 0]
        return Scores(total[rejected - 1], total[rejected])


@dataclass(frozen=True)
class Pairs:
    """The rows of a source; those with speech that are no pairs are refused."""

    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    def row(self, index: int) -> Row:
        row = self.source.row(index)
        if row.rejected is None and row.conversation.speech:
            raise ValueError(
                "it is no pair; add rejected_codes or rejected_speech, or make pairs with "
                "`thinktalk train pairs`"
            )
        return row

    def place(self, index: int) -> str:
        return self.source.place(index)

    def stamp(self) -> str:
        return f"pairs of {self.source.stamp()}"


def _num_chosen(batch: dict[str, Any]) -> float:
    """Ids of the chosen replies, their ends included."""
    rejected = batch["rejected"].tolist()
    samples = batch["spoken"][:, 0].tolist()
    codes = [c for c, sample in zip(batch["codes"], samples, strict=True) if not rejected[sample]]
    return num_said({"codes": codes})
