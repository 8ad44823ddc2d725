"""A batch of conversations into the Thinker: its embeddings and hidden states, on every rank alike.

Batches are those of data.Loader, as packing.collate describes them.
Shapes: B rows, T tokens, C width of the Thinker.
"""

from typing import Any

import torch
from torch import Tensor

from thinktalk.model.layers import Packed
from thinktalk.model.thinker import Thinker

SILENT_FRAMES = 4  # the shortest sound that gives a token
BLACK_GRID = (1, 2, 2)  # the smallest picture that gives one


def read(thinker: Thinker, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Embeddings and hidden states [B,T,C] of a batch; no sample sees another."""
    embeddings = embedded(thinker, batch)
    segments, mask = batch["segments"], None
    if len(segments) <= int(segments.max()):
        lengths = segments[0].unique_consecutive(return_counts=True)[1]
        mask = Packed(tuple(lengths.tolist()))
    return embeddings, thinker(embeddings, positions=batch["positions"], mask=mask)


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
