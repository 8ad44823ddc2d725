"""Pictures in, flattened patches out: sizes, antialiased resizing, normalising, patch order.

Shapes: n frames of H x W pixels, h x w after resizing, P patches of 3 x 2 x 14 x 14 = 1176 values.
Everything equals the reference's image and video processors bit for bit (model.md 3.3), whatever
the installed Pillow does: resizing repeats the 8-bit arithmetic of torchvision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Grid = tuple[int, int, int]  # frame pairs, patch rows, patch columns

MAX_ASPECT = 200
CUBIC = -0.5  # the bicubic kernel's free parameter when antialiasing
WEIGHT_BITS = 15  # weights of the resize are 16-bit signed integers
BLOCK_PIXELS = 32  # output pixels per matrix product: wide enough for BLAS, narrow as the band


@dataclass(frozen=True)
class Processor:
    """What a checkpoint accepts of pictures and videos; the defaults are the official ones.

    Pixel counts are per picture or per video frame, after resizing.
    """

    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 16_384 * 28 * 28
    video_min_pixels: int = 128 * 28 * 28
    video_max_pixels: int = 768 * 28 * 28
    video_total_pixels: int = 115_200 * 28 * 28  # of all frames of one video together
    video_fps: float = 2.0
    video_min_frames: int = 4
    video_max_frames: int = 768
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Processor:
        """Read preprocessor_config.json, or transformers 5's processor_config.json beside it."""
        section: dict[str, Any] = {}
        for name in ("processor_config.json", "preprocessor_config.json"):
            path = Path(folder) / name
            if path.is_file():
                content = json.loads(path.read_text(encoding="utf-8"))
                section |= content.get("image_processor", content)
        return cls.from_dict(section)

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> Processor:
        """Read the official spelling (`min_pixels`) or that of transformers (`size`).

        The file belongs to transformers, so keys that we do not know are left alone. The limits of
        videos are ours (`video_...`): the reference fixes them in code and writes misleading ones.
        """
        size = section.get("size") or {}
        values = {
            "min_pixels": size.get("shortest_edge", size.get("min_pixels")),
            "max_pixels": size.get("longest_edge", size.get("max_pixels")),
        }
        for f in fields(cls):
            if section.get(f.name) is not None:
                value = section[f.name]
                values[f.name] = tuple(value) if isinstance(value, list) else value
        return cls(**{name: value for name, value in values.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """preprocessor_config.json as the official one is, with our video limits added."""
        ours = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **{name: list(v) if isinstance(v, tuple) else v for name, v in ours.items()},
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5OmniProcessor",
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": 128,
            "sampling_rate": 16000,
            "hop_length": 160,
            "n_fft": 400,
            "chunk_length": 300,
            "n_samples": 4_800_000,
            "nb_max_frames": 30_000,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "dither": 0.0,
        }

    @property
    def cell(self) -> int:
        """Side in pixels of the square behind one token."""
        return self.patch_size * self.merge_size


def target_size(
    height: int, width: int, *, cell: int, min_pixels: float, max_pixels: float
) -> tuple[int, int]:
    """Return (h, w): multiples of cell, area within the limits, nearly the same shape.

    Raises ValueError for a side ratio above 200.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"{width} x {height} pixels is too narrow; one side may be at most {MAX_ASPECT} times "
            "the other, so crop it"
        )
    h, w = round(height / cell) * cell, round(width / cell) * cell
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h = max(cell, math.floor(height / shrink / cell) * cell)
        w = max(cell, math.floor(width / shrink / cell) * cell)
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h = math.ceil(height * grow / cell) * cell
        w = math.ceil(width * grow / cell) * cell
    return h, w


def image_size(
    height: int,
    width: int,
    *,
    processor: Processor,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> tuple[int, int]:
    """Return the (h, w) at which the model sees a picture; the limits may be overridden."""
    return target_size(
        height,
        width,
        cell=processor.cell,
        min_pixels=min_pixels or min(processor.min_pixels, max_pixels or math.inf),
        max_pixels=max_pixels or processor.max_pixels,
    )


def patches(
    image: Bytes, *, processor: Processor, size: tuple[int, int] | None = None
) -> tuple[Floats, Grid]:
    """Return the patches [P,1176] of a picture uint8 [H,W,3] and its grid (1, rows, columns).

    size is the (h, w) to resize to, multiples of 28; by default what the limits give.
    """
    size = size or image_size(image.shape[0], image.shape[1], processor=processor)
    frame = resize(image, size=size)
    return patchify([frame] * processor.temporal_patch_size, processor=processor)


def patchify(frames: list[Bytes], *, processor: Processor) -> tuple[Floats, Grid]:
    """Cut an even number of frames uint8 [h,w,3] into normalised patches [P,1176].

    Rows follow (pair, block row, block column, row in the 2x2 block, column in it): the order in
    which the 2x2 merger of the vision encoder reads them.
    """
    pair, patch, merge = processor.temporal_patch_size, processor.patch_size, processor.merge_size
    pixels = np.stack(frames)  # [n,h,w,3]
    n, h, w, _ = pixels.shape
    assert n % pair == 0 and h % processor.cell == 0 and w % processor.cell == 0, pixels.shape
    grid = (n // pair, h // patch, w // patch)
    down, across = h // processor.cell, w // processor.cell
    shape = (n // pair, pair, down, merge, patch, across, merge, patch, 3)
    ordered = pixels.reshape(shape).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    levels = np.ascontiguousarray(ordered).reshape(math.prod(grid), 3, -1)
    return normalise(levels, processor=processor), grid


def normalise(levels: Bytes, *, processor: Processor) -> Floats:
    """Return the patches [P,1176] of 8-bit levels [P,3,392]."""
    out = np.empty(levels.shape, np.float32)
    means, stds = _scaled(processor)
    for channel in range(3):
        # mean and std are scaled, not the levels: the reference's order, to the last bit
        np.subtract(levels[:, channel], means[channel], out=out[:, channel])
        out[:, channel] /= stds[channel]
    return out.reshape(len(levels), -1)


def levels_of(patches: Floats, *, processor: Processor) -> Bytes:
    """Return the 8-bit levels [P,3,392] that normalise turns into these patches [P,1176]."""
    means, stds = _scaled(processor)
    levels = patches.reshape(len(patches), 3, -1) * stds[:, None] + means[:, None]
    return np.rint(levels).astype(np.uint8)


def _scaled(processor: Processor) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each channel, in levels of 0..255."""
    mean, std = processor.image_mean, processor.image_std
    return np.array(mean, np.float32) * 255, np.array(std, np.float32) * 255


def resize(image: Bytes, *, size: tuple[int, int]) -> Bytes:
    """Return uint8 [h,w,3]: bicubic with antialias, columns first, then rows.

    Both passes round to 8 bits with 16-bit weights, exactly as torchvision does on the CPU.
    """
    height, width = size
    if image.shape[1] != width:
        image = _resize_rows(image.transpose(1, 0, 2), width).transpose(1, 0, 2)
    if image.shape[0] != height:
        image = _resize_rows(image, height)
    return np.ascontiguousarray(image)


def _resize_rows(image: Bytes, height: int) -> Bytes:
    """Resize the first axis of uint8 [H,W,3]."""
    starts, weights, bits = _integer_weights(image.shape[0], height)
    taps = weights.shape[1]
    # Sums of integers below 2**24 are exact in float32 in any order, below 2**53 in float64.
    largest = 255 * int(np.abs(weights).sum(axis=1).max()) + (1 << bits)
    kind = np.float32 if largest < 1 << 24 else np.float64
    rows = image.reshape(image.shape[0], -1).astype(kind)
    out = np.empty((height, rows.shape[1]), np.uint8)
    for first in range(0, height, BLOCK_PIXELS):
        block = slice(first, min(first + BLOCK_PIXELS, height))
        low, high = int(starts[block][0]), min(int(starts[block][-1]) + taps, len(rows))
        band = np.zeros((block.stop - first, high - low + taps), kind)
        offsets = (starts[block] - low)[:, None] + np.arange(taps)
        np.put_along_axis(band, offsets, weights[block].astype(kind), axis=1)
        sums = band[:, : high - low] @ rows[low:high] + (1 << (bits - 1))
        out[block] = np.clip(np.floor(sums * 0.5**bits), 0, 255)
    return out.reshape(height, *image.shape[1:])


@lru_cache(maxsize=64)
def _integer_weights(before: int, after: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the first input pixel of every output pixel, its weights [after, taps], their bits."""
    scale = before / after
    stretch = max(scale, 1.0)
    centres = scale * (np.arange(after) + 0.5)
    starts = np.maximum((centres - 2 * stretch + 0.5).astype(np.int64), 0)
    stops = np.minimum((centres + 2 * stretch + 0.5).astype(np.int64), before)
    taps = np.arange(int((stops - starts).max()))
    distance = (taps + starts[:, None] - centres[:, None] + 0.5) / stretch
    weights = np.where(taps < (stops - starts)[:, None], _cubic(np.abs(distance)), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << WEIGHT_BITS:
        bits += 1
    whole = np.trunc(weights * (1 << bits) + np.where(weights < 0, -0.5, 0.5))
    return starts, whole.astype(np.int64), bits


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
