"""Lengths in, batches planned; examples in, one batch of tensors out.

Shapes: B rows of T tokens, S samples in them, K spoken replies of L Talker positions.

A batch is either padded (a sample a row) or packed: one row, samples behind one another, each with
positions of its own. `segments` tells them apart, and `causal_mask` keeps them apart.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinktalk.config import TalkerConfig
from thinktalk.train.examples import IGNORED, TALKER_START_ROWS, Example

Ints = NDArray[np.int64]

PADDING = -1  # segment of what belongs to no sample
LENGTH_GRID = 32  # few distinct shapes: kernels are compiled for each


def plan_padded(
    lengths: Ints, *, batch_tokens: int | None = None, batch_size: int | None = None
) -> list[Ints]:
    """Batches of neighbours in length, of up to so many samples and so many tokens with padding.

    lengths [n], each at most batch_tokens -> the places of every batch's samples; each place is in
    exactly one batch.
    """
    batches: list[list[int]] = []
    width = 0
    for place in _longest_first(lengths):  # the first sample of a batch sets its width
        count = len(batches[-1]) + 1 if batches else 0
        full = batch_size is not None and count > batch_size
        full |= batch_tokens is not None and count * width > batch_tokens
        if not batches or full:
            batches.append([])
            width = int(lengths[place])
        batches[-1].append(place)
    return [np.array(batch, np.int64) for batch in batches]


def plan_packed(
    lengths: Ints, *, batch_tokens: int | None, batch_size: int | None = None
) -> list[Ints]:
    """Rows of up to so many tokens and so many samples, filled best fit, longest first.

    lengths [n], each at most batch_tokens -> the places of every row's samples, in their order.
    """
    assert batch_tokens is not None and lengths.max(initial=0) <= batch_tokens, batch_tokens
    rooms: list[tuple[int, int]] = []  # (free tokens, number of the row), sorted
    rows: list[list[int]] = []
    for place in _longest_first(lengths):
        length = int(lengths[place])
        at = bisect_left(rooms, (length, 0))
        room, number = rooms.pop(at) if at < len(rooms) else (batch_tokens, len(rows))
        if number == len(rows):
            rows.append([])
        rows[number].append(place)
        if len(rows[number]) != batch_size:
            insort(rooms, (room - length, number))
    return [np.array(sorted(row), np.int64) for row in rows]


def _longest_first(lengths: Ints) -> list[int]:
    return np.argsort(-lengths, kind="stable").tolist()


def collate(
    examples: Sequence[Example], *, samples: Sequence[int], pad_id: int, packed: bool
) -> dict[str, Any]:
    """One batch; tensors and lists of tensors only.

    samples: a number for every example, which comes back in the batch.

    ids, labels int64 [B,T]; positions int64 [3,B,T]; segments int64 [B,T]: which sample, counted
    from 0, or PADDING; samples int64 [S]; rejected bool [S]; wanted int64 [S]: 1, 0, or -1 where
    nobody said; mels: a list of [128,F]; image_patches, video_patches: lists of [P,1176], with
    image_grids and video_grids int64 [n,3]; spoken int64 [K,5]: sample, row, start and end of the
    text, voice; codes: a list of K int64 [n]. Media stand in reading order.
    """
    assert examples and len(examples) == len(samples), (len(examples), len(samples))
    lengths = [len(example.ids) for example in examples]
    width = grown(sum(lengths) if packed else max(lengths))
    num_rows = 1 if packed else len(examples)
    ids = np.full((num_rows, width), pad_id, np.int64)
    labels, segments = np.full_like(ids, IGNORED), np.full_like(ids, PADDING)
    positions = np.zeros((3, num_rows, width), np.int64)
    spoken: list[tuple[int, ...]] = []
    start = 0
    for number, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        row = 0 if packed else number
        where = slice(start, start + length)
        ids[row, where], labels[row, where] = example.ids, example.labels
        segments[row, where] = number
        positions[:, row, where] = example.positions
        spoken += [(number, row, start + s.start, start + s.end, s.voice) for s in example.spoken]
        start = start + length if packed else 0
    return {
        "ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "positions": torch.from_numpy(positions),
        "segments": torch.from_numpy(segments),
        "samples": torch.tensor(list(samples), dtype=torch.int64),
        "rejected": torch.tensor([example.rejected for example in examples]),
        "wanted": torch.tensor([-1 if e.wanted is None else int(e.wanted) for e in examples]),
        "spoken": torch.tensor(spoken, dtype=torch.int64).reshape(-1, 5),
        "codes": [torch.from_numpy(s.codes) for e in examples for s in e.spoken],
    } | _media(examples)


def _media(examples: Sequence[Example]) -> dict[str, Any]:
    prompts = [example.prompt for example in examples]
    images = [image for prompt in prompts for image in prompt.images]
    videos = [video for prompt in prompts for video in prompt.videos]
    return {
        "mels": [torch.from_numpy(mel) for prompt in prompts for mel in prompt.mels],
        "image_patches": [torch.from_numpy(patches) for patches, _ in images],
        "image_grids": torch.tensor([grid for _, grid in images]).reshape(-1, 3).long(),
        "video_patches": [torch.from_numpy(patches) for patches, _, _ in videos],
        "video_grids": torch.tensor([grid for _, grid, _ in videos]).reshape(-1, 3).long(),
    }


def talker_rows(batch: dict[str, Any], *, config: TalkerConfig) -> dict[str, Tensor]:
    """What the Talker reads and shall say: one row for every spoken reply of a collated batch.

    The Talker's track at a position is a row of the Thinker's (state plus text embedding), so here
    are places: places int64 [K,L] from 0 to T - 1 in row `rows` [K] of the batch, and T, T + 1,
    T + 2 for the voice, the end of the text and padding; special_ids int64 [K,3] are the tokens of
    these three. codec_ids int64 [K,L] with has_codec bool [K,L] is the track of what was said;
    labels [K,L] what comes next, the end id last; positions int64 [3,K,L].
    """
    width = batch["ids"].shape[1]
    voice, end, pad = width, width + 1, width + 2
    replies = batch["spoken"].tolist()
    segments = batch["segments"]
    begins = [int((segments[row] == sample).nonzero()[0]) for sample, row, *_ in replies]
    sizes = [
        start - begin + TALKER_START_ROWS + len(codes)
        for begin, (_, _, start, _, _), codes in zip(begins, replies, batch["codes"], strict=True)
    ]
    shape = (len(replies), grown(max(sizes, default=0)))
    places = torch.full(shape, pad)
    codec_ids, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    has_codec = torch.zeros(shape, dtype=torch.bool)
    positions = torch.zeros((3, *shape), dtype=torch.int64)
    starting = torch.tensor([config.tts_codec_pad_token_id, config.tts_codec_start_token_id])
    stop = torch.tensor([config.tts_codec_end_token_id])
    for k, (begin, reply, codes) in enumerate(zip(begins, replies, batch["codes"], strict=True)):
        _, row, start, text_end, _ = reply
        prompt, said = start - begin, len(codes) + 1  # the start id is said, too
        text = torch.arange(start, text_end)[:said]
        places[k, :prompt] = torch.arange(begin, start)
        places[k, prompt] = voice
        places[k, prompt + 1 : prompt + 1 + len(text)] = text
        if len(text) < said:
            places[k, prompt + 1 + len(text)] = end
        codec_ids[k, prompt : prompt + 1 + said] = torch.cat((starting, codes))
        has_codec[k, prompt : prompt + 1 + said] = True
        labels[k, prompt + 1 : prompt + 1 + said] = torch.cat((codes, stop))
        positions[:, k, : prompt + 1 + said] = _talker_positions(
            batch["positions"][:, row, begin : start + 1], said=said
        )
    special = (config.tts_text_end_token_id, config.tts_text_pad_token_id)
    return {
        "rows": batch["spoken"][:, 1],
        "places": places,
        "special_ids": torch.tensor([[reply[4], *special] for reply in replies]).reshape(-1, 3),
        "codec_ids": codec_ids,
        "has_codec": has_codec,
        "labels": labels,
        "positions": positions,
    }


def _talker_positions(thinker: Tensor, *, said: int) -> Tensor:
    """Of the prompt and the first reply token [3,P+1] -> [3,P+1+said], as generation places them.

    The voice stands where the Thinker's reply begins; what is said counts on from the furthest.
    """
    after = int(thinker[0, -1])
    furthest = max(after + 1, int(thinker.max()))
    behind = [after, after + 1, *range(furthest + 1, furthest + said)]
    return torch.cat((thinker[:, :-1], torch.tensor(behind).expand(3, -1)), dim=1)


def causal_mask(segments: Tensor) -> Tensor:
    """segments int64 [B,T] -> bool [B,1,T,T]: a token sees its own sample, up to itself."""
    same = segments[:, :, None] == segments[:, None, :]
    return same.tril()[:, None]


def cumulative_lengths(segments: Tensor) -> Tensor:
    """segments int64 [B,T] -> int32 [S+1], where samples begin and end in the flattened rows.

    What kernels for rows of varying length take; the padding of a row counts as a sample.
    """
    rows, width = segments.shape
    flat = segments.flatten()
    begins = torch.ones_like(flat, dtype=torch.bool)
    begins[1:] = flat[1:] != flat[:-1]
    begins[::width] = True
    places = begins.nonzero()[:, 0]
    return torch.cat((places, places.new_tensor([rows * width]))).int()


def grown(length: int) -> int:
    """The next length on the grid."""
    return -(-length // LENGTH_GRID) * LENGTH_GRID


def learned_rows(labels: Tensor) -> tuple[Tensor, Tensor]:
    """labels int64 [B,T] -> flat places [n] of the labels that count, and those labels [n].

    n is rounded up with places that are IGNORED, again for few distinct shapes.
    """
    flat = labels.flatten()
    places = (flat != IGNORED).nonzero()[:, 0]
    missing = -len(places) % (8 * LENGTH_GRID)
    ignored = (flat == IGNORED).nonzero()[:missing, 0]
    places = torch.cat((places, ignored))
    return places, flat[places]
