"""The Thinker's task on people's data: conversations with any media in, their replies learned.

Batches are those of data.Loader, as packing.collate describes them.
Shapes: B rows, T tokens, C width of the Thinker, S samples, n tokens that are learned.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thinktalk import adapters
from thinktalk.model.thinker import Thinker
from thinktalk.train.drift import Drift
from thinktalk.train.examples import IGNORED
from thinktalk.train.feed import Batches
from thinktalk.train.job import Job, Tensors, put_back
from thinktalk.train.losses import token_losses
from thinktalk.train.packing import learned_rows
from thinktalk.train.reading import read
from thinktalk.train.stages import RowStage, ThinkerStage
from thinktalk.train.trainer import Task, to_device
from thinktalk.weights import LoadedModel

LOG = logging.getLogger(__name__)

KINDS = ("audio", "image", "video")  # in the order of config.media_token_ids
ADAPTER = "adapter"

Sums = dict[str, Tensor]


class OmniTask(Task):
    """Cross-entropy on the replies of conversations with text, sound, pictures and films.

    Trained is what requires a gradient: of the Thinker or, if there are any, of the additions of
    LoRA to it, and then nothing else is saved. Figures: text is the loss, right the share of tokens
    that are the likeliest ones, text_audio, text_image, text_video and text_alone the loss of the
    samples that hold such media, or none. held_out: batches for evaluate(), moved when they are
    used; drift: measured there, too.

    steady: weight of a second loss, `moved`, which keeps the voice of a model that talks: at the
    tokens that the Thinker as it was at the start would have written itself, what the Talker reads
    of it shall stay as it was. (Mean of |now - then|^2 / |then|^2; a copy of that Thinker reads
    every batch, too.) What it did not know is free to move.
    """

    def __init__(
        self,
        thinker: Thinker,
        *,
        additions: nn.Module | None = None,
        held_out: Iterable[dict[str, Any]] = (),
        drift: Drift | None = None,
        steady: float = 0.0,
    ):
        self.module = additions or nn.ModuleDict({"thinker": thinker})
        self.thinker, self.held_out, self.drift = thinker, list(held_out), drift
        self.steady, self.before = steady, None
        if steady:
            self.before = deepcopy(thinker).eval().requires_grad_(False)
        companions = thinker if additions else None, self.before
        self.companions = tuple(network for network in companions if network is not None)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        sums, counts = self._sums(batch)
        figures = {name: sums[name] / counts[name] for name in sums}
        return figures["text"] + self.steady * figures.get("moved", 0.0), figures

    def weight(self, batch: dict[str, Any]) -> float:
        return num_learned(wanted(batch))

    def evaluate(self) -> dict[str, float]:
        """The same figures, over all held-out tokens alike."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for batch in self.held_out:
            moved = to_device(batch, self.thinker.lm_head.weight.device)
            sums, counts = self._sums(moved)
            for name, value in sums.items():
                totals[name][0] += value.item()
                totals[name][1] += counts[name]
        figures = {name: value / count for name, (value, count) in totals.items()}
        if self.drift is not None:
            figures["drift"] = self.drift.measure(self.thinker)
        return figures

    def _sums(self, batch: dict[str, Any]) -> tuple[Sums, dict[str, float]]:
        """Every figure's sum over the tokens that it is about, and how many these are."""
        places, labels = learned_rows(wanted(batch))
        embeddings, hidden = _read_at(places, self.thinker, batch)
        losses, right = token_losses(hidden, labels, logits=self.thinker.logits)
        learned = labels != IGNORED
        of_kind = {"": learned, "alone": learned}
        samples = batch["segments"].flatten()[places]
        for kind, token in zip(KINDS, self.thinker.config.media_token_ids, strict=True):
            having = batch["segments"][batch["ids"] == token]
            of_kind[kind] = learned & torch.isin(samples, having)
            of_kind["alone"] = of_kind["alone"] & ~of_kind[kind]
        counts = torch.stack([chosen.sum() for chosen in of_kind.values()]).tolist()
        numbers = {name: float(n) for name, n in zip(of_kind, counts, strict=True) if n or not name}
        numbers[""] = max(1.0, numbers[""])
        sums = {_figure(name): losses[of_kind[name]].sum() for name in numbers}
        every = {_figure(name): number for name, number in numbers.items()}
        if self.before is not None:
            with torch.no_grad():
                then = _read_at(places, self.before, batch)
                known = token_losses(then[1], labels, logits=self.before.logits)[1]
            moved = _change((embeddings + hidden)[known], (then[0] + then[1])[known])
            sums["moved"], every["moved"] = moved.sum(), max(1.0, float(len(moved)))
        return sums | {"right": right.sum().float()}, every | {"right": numbers[""]}


def prepare(job: Job, stage: ThinkerStage) -> tuple[Task, Batches]:
    """What stages of the Thinker need."""
    omni, loader = job.model.omni, job.loader(stage, speech="ignored")
    additions = drift = None
    if job.lora is None:
        choose_learners(omni, stage)
    else:
        additions = adapters.add(omni, job.lora)
    if job.model.voices:
        drift = Drift(omni.thinker, loader.dataset, kept=job.kept)
        if job.ranks.is_first:
            LOG.warning(
                "%s trains the Thinker alone, and the Talker speaks from its states: speech may "
                "drift. The figure test_drift says by how much these states have changed; steady=1 "
                "holds them, or train the Talker afterwards if it is large",
                stage.name,
            )
    held_out = job.held_out(stage, speech="ignored")
    task = OmniTask(
        omni.thinker,
        additions=additions,
        held_out=held_out,
        drift=drift,
        steady=stage.steady,
    )
    return task, loader


def put_back_any(job: Job, weights: Tensors) -> LoadedModel:
    """The job's model with the trained weights, or with the additions merged into its own."""
    if job.lora is None:
        return put_back(job, weights)
    additions = adapters.add(job.model.omni, job.lora)
    additions.load_state_dict(dict(weights))
    adapters.merge(job.model.omni)
    return job.model


def write_adapter(job: Job, weights: Tensors, folder: Path) -> None:
    """The additions alone, beside the merged checkpoint."""
    if job.lora is not None:
        adapters.save(weights, job.lora, job.out / ADAPTER, base=str(job.base))


def choose_learners(omni: nn.Module, stage: RowStage) -> None:
    """Lets learn what the stage says, by official names, and nothing else.

    Raises ValueError for a pattern that fits nothing.
    """
    names = [name for name, _ in omni.named_parameters()]
    for pattern in (*stage.learns, *stage.frozen):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no weight is called {pattern!r}; names are like {names[0]!r}")
    for name, weight in omni.named_parameters():
        chosen = any(fnmatchcase(name, pattern) for pattern in stage.learns)
        held = any(fnmatchcase(name, pattern) for pattern in stage.frozen)
        weight.requires_grad_(chosen and not held)


def wanted(batch: dict[str, Any]) -> Tensor:
    """The labels [B,T] without those of replies that were rejected, or labelled as bad."""
    labels = batch["labels"]
    if "rejected" not in batch:
        return labels
    bad = batch["rejected"] | (batch["wanted"] == 0)
    return labels.masked_fill(bad[batch["segments"].clamp(min=0)], IGNORED)


def num_learned(labels: Tensor) -> float:
    return float((labels != IGNORED).sum())


def _read_at(places: Tensor, thinker: Thinker, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Embeddings and hidden states [n,C] at flat places [n] of a batch."""
    embeddings, hidden = read(thinker, batch)
    return embeddings.flatten(0, 1)[places], hidden.flatten(0, 1)[places]


def _change(now: Tensor, then: Tensor) -> Tensor:
    """[k,C] each -> |now - then|^2 / |then|^2, [k]."""
    return (now - then).float().square().sum(-1) / then.float().square().sum(-1)


def _figure(kind: str) -> str:
    return f"text_{kind}" if kind else "text"
