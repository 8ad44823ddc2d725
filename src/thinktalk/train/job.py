"""What a stage on rows has to work with, and what a stage is: for the table in tuning.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from thinktalk.adapters import Lora
from thinktalk.parallel import Ranks
from thinktalk.train.data import Batch, Dataset, Loader
from thinktalk.train.examples import ExampleMaker, maker_for
from thinktalk.train.features import FeatureCache
from thinktalk.train.feed import Batches
from thinktalk.train.shards import Source
from thinktalk.train.stages import RowStage
from thinktalk.train.trainer import Stage, Task
from thinktalk.weights import LoadedModel, listing

Speech = Literal["ignored", "welcome", "needed"]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Job:
    """What a stage has to work with; the same on every rank.

    model: the checkpoint, as the parts before left it, on the CPU and in float32 (under LoRA as it
    is stored); its networks are those to train. base: how it was named. weights: how often the
    rows of each source are drawn. held: rows to measure on. out: the folder of the run, in which
    `kept` holds what is made once and found by later legs.
    """

    model: LoadedModel
    base: str
    sources: Sequence[Source]
    ranks: Ranks
    out: Path
    weights: Sequence[float] | None = None
    held: Sequence[Source] = ()
    lora: Lora | None = None
    system: str | None = None  # for rows without a system prompt
    workers: int = 4
    max_bad_share: float = 0.01

    @cached_property
    def kept(self) -> Path:
        folder = self.out / "kept"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def cache(self) -> FeatureCache:
        return FeatureCache(self.kept / "features")

    def maker(self, *, speech: Speech) -> ExampleMaker:
        """Makes examples of rows; speech: whether that of replies is a target."""
        return replace(maker_for(self.model, speech=speech, cache=self.cache), system=self.system)

    def dataset(self, *, speech: Speech, max_length: int | None = None) -> Dataset:
        return Dataset(
            self.sources,
            self.maker(speech=speech),
            weights=self.weights,
            max_bad_share=self.max_bad_share,
            max_length=max_length,
            folder=self.kept,
            workers=self.workers,
        )

    def loader(self, stage: RowStage, *, speech: Speech) -> Loader:
        """This rank's batches of the training rows, without end."""
        return self._loader(
            stage, self.dataset(speech=speech, max_length=stage.batch_tokens), alone=False
        )

    def held_out(self, stage: RowStage, *, speech: Speech) -> list[Batch]:
        """All held rows in batches, the same on every rank."""
        if not self.held:
            return []
        rows = Dataset(
            self.held,
            self.maker(speech=speech),
            max_bad_share=self.max_bad_share,
            max_length=stage.batch_tokens,
            folder=self.kept,
            workers=self.workers,
        )
        return list(self._loader(stage, rows, alone=True))

    def _loader(self, stage: RowStage, rows: Dataset, *, alone: bool) -> Loader:
        return Loader(
            rows,
            batch_tokens=stage.batch_tokens,
            batch_size=stage.batch_size or None,
            packed=stage.packed,
            rank=0 if alone else self.ranks.rank,
            world=1 if alone else self.ranks.world,
            seed=stage.seed,
            epochs=1 if alone else None,
            pad_id=self.model.config.thinker_config.pad_token_id,
            workers=self.workers,
        )


def put_back(job: Job, weights: Tensors) -> LoadedModel:
    """The job's model with the trained weights, known by their official names.

    Heads that exist for training only stay behind. Raises ValueError where nothing fits.
    """
    known = job.model.omni.state_dict()
    ours = {name: tensor for name, tensor in weights.items() if name in known}
    unfit = [name for name in ours if ours[name].shape != known[name].shape]
    if unfit or not ours:
        what = f"{listing(unfit)} have other shapes" if unfit else "no name is common"
        raise ValueError(
            f"{job.out} did not train a model like {job.model.folder}: {what}; give the checkpoint "
            "that the run began with"
        )
    job.model.omni.load_state_dict(ours, strict=False)
    return job.model


def nothing(job: Job, weights: Tensors, folder: Path) -> None:
    """Nothing besides the official layout."""


@dataclass(frozen=True)
class Course:
    """A stage as people call it.

    stages: the numbers of its parts, one after another, each on what the ones before learned.
    prepare: the task of a part and what gives its batches (None: the task draws them); what it
    writes into job.kept is there before other ranks prepare. put_back: the model with the best
    weights of a part. extras: writes what the official layout has no place for into the finished
    folder, such as a speech encoder. lora: whether it may train additions instead of weights.
    """

    stages: tuple[Callable[[], Stage], ...]
    prepare: Callable[[Job, Any], tuple[Task, Batches | None]]
    put_back: Callable[[Job, Tensors], LoadedModel] = put_back
    extras: Callable[[Job, Tensors, Path], None] = nothing
    lora: bool = False
