"""The Thinker's task on people's data: conversations with any media in, their replies learned.

Batches are those of data.Loader, as packing.collate describes them.
Shapes: B rows, T tokens, C width of the Thinker.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.model.thinker import Thinker
from thinktalk.train.conversations import learned_rows
from thinktalk.train.examples import IGNORED
from thinktalk.train.feed import Batches
from thinktalk.train.job import Job
from thinktalk.train.packing import causal_mask
from thinktalk.train.stages import RowStage
from thinktalk.train.trainer import Task, to_device

SILENT_FRAMES = 4  # the shortest sound that gives a token
BLACK_GRID = (1, 2, 2)  # the smallest picture that gives one


def prepare(job: Job, stage: RowStage) -> tuple[Task, Batches]:
    """What stages of the Thinker need."""
    thinker = job.model.omni.thinker
    choose_learners(job.model.omni, stage)
    held_out = job.held_out(stage, speech="ignored")
    return OmniTask(thinker, held_out=held_out), job.loader(stage, speech="ignored")


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


class OmniTask(Task):
    """Cross-entropy on the replies of conversations with text, sound, pictures and films.

    Trained is what requires a gradient. held_out: batches for evaluate(), moved when they are used.
    """

    def __init__(self, thinker: Thinker, *, held_out: Iterable[dict[str, Any]] = ()):
        self.module = nn.ModuleDict({"thinker": thinker})
        self.thinker, self.held_out = thinker, list(held_out)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        segments = batch["segments"]
        is_packed = len(segments) <= int(segments.max())
        hidden = self.thinker(
            embedded(self.thinker, batch),
            positions=batch["positions"],
            mask=causal_mask(segments) if is_packed else None,
        )
        places, labels = learned_rows(batch["labels"])
        logits = self.thinker.logits(hidden.flatten(0, 1)[places])
        count = (labels != IGNORED).sum().clamp(min=1)
        text = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / count
        right = (logits.argmax(-1) == labels).sum() / count
        return text, {"text": text, "right": right}

    def weight(self, batch: dict[str, Any]) -> float:
        return num_learned(batch["labels"])

    def evaluate(self) -> dict[str, float]:
        """The same figures, over all held-out tokens alike."""
        sums, total = torch.zeros(2, dtype=torch.float64), 0.0
        for batch in self.held_out:
            moved = to_device(batch, self.thinker.lm_head.weight.device)
            figures = self.loss(moved)[1]
            count = self.weight(batch)
            sums += count * torch.stack([figures["text"], figures["right"]]).double().cpu()
            total += count
        if not total:
            return {}
        text, right = (sums / total).tolist()
        return {"text": text, "right": right}


def embedded(thinker: Thinker, batch: dict[str, Any]) -> Tensor:
    """Embeddings [B,T,C] of the ids, with the media in their places.

    Whatever the batch holds, the audio encoder runs first, then the vision encoder, then all is
    put together: what is missing is replaced by a moment of silence or a black spot that counts
    for nothing. So all ranks run the same networks in the same order. Otherwise FSDP2 would put
    together weights of different encoders, at worst without an error.
    """
    mels = batch.get("mels", [])
    images, videos = _pictures(batch, "image"), _pictures(batch, "video")
    heard = thinker.encode_audio(mels or [_silence(thinker)])
    seen = thinker.encode_patches([*images, *videos] or [_black(thinker)])
    assert heard is not None and seen is not None
    area = thinker.config.vision_config.spatial_merge_size**2
    num_image_tokens = int(batch["image_grids"].prod(-1).sum()) // area if images else 0
    embeddings = thinker.embed_prompt(
        batch["ids"],
        audio=heard if mels else None,
        images=seen[:num_image_tokens] if images else None,
        videos=seen[num_image_tokens:] if videos else None,
    )
    for tokens, counts in ((heard, mels), (seen, images or videos)):
        if not counts:
            embeddings = embeddings + 0 * tokens.sum().to(embeddings.dtype)
    return embeddings


def num_learned(labels: Tensor) -> float:
    return float((labels != IGNORED).sum())


def _pictures(batch: dict[str, Any], kind: str) -> list[tuple[Tensor, Tensor]]:
    patches = batch.get(f"{kind}_patches", [])
    return list(zip(patches, batch[f"{kind}_grids"], strict=True)) if patches else []


def _silence(thinker: Thinker) -> Tensor:
    bins = thinker.config.audio_config.num_mel_bins
    return torch.zeros(bins, SILENT_FRAMES, device=thinker.lm_head.weight.device)


def _black(thinker: Thinker) -> tuple[Tensor, Tensor]:
    grid = torch.tensor(BLACK_GRID)
    size = (int(grid.prod()), thinker.config.vision_config.patch_dim)
    return torch.zeros(size, device=thinker.lm_head.weight.device), grid
