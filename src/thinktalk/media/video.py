"""Films or frames in; sampled frames, their sound and their patches out.

Sizes and limits as the official qwen-omni-utils and the reference's video processor have them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinktalk.media.decode import load_image, segment
from thinktalk.media.film import (
    FRAME_FACTOR,
    Sampling,
    Size,
    is_picture,
    read_animation,
    read_film,
    sized,
    stacked,
)
from thinktalk.media.image import Bytes, Floats, Grid, Processor, patchify, resize, target_size
from thinktalk.media.source import Source, open_source

Frames = list[Any] | tuple[Any, ...]  # pictures, each as load_image takes them

LEAST_GROWTH = 1.05  # the share of the total budget never falls below this times the minimum
SECONDS_STEP = 1 / 64  # measured frame distances are exact in float32 and float64 alike


@dataclass(frozen=True)
class Video:
    """Sampled frames uint8 [n,H,W,3], their rate, and the sound (16 kHz, float32 [n]) if any."""

    frames: Bytes
    fps: float  # true rate of the sampled frames: the requested one unless a limit changed it
    requested_fps: float  # what the reference takes for the rate, whatever was sampled
    sound: Floats | None = None

    def seconds_per_pair(self, *, exact: bool) -> float:
        """Time between frame pairs; exact gives the reference's value, else the true one."""
        if exact or self.fps == self.requested_fps:
            return FRAME_FACTOR / self.requested_fps
        return max(1, round(FRAME_FACTOR / self.fps / SECONDS_STEP)) * SECONDS_STEP


def load_video(
    source: Source | Frames | NDArray[Any],
    *,
    fps: float = 2.0,
    num_frames: int | None = None,
    min_frames: int = 4,
    max_frames: int = 768,
    start: float | None = None,
    end: float | None = None,
    sound: bool = True,
    size: Size | None = None,
    max_seconds: float | None = None,
) -> Video:
    """Sample a film (or animated picture) and read its sound, if it has any and sound is True.

    A sequence of pictures or an array [n,H,W,3] holds frames already sampled at fps. num_frames
    takes the place of fps; start and end, in seconds, cut a segment. size tells to what (h, w)
    frames are brought as they are decoded, to hold less memory. Raises ValueError for what cannot
    be read, and for sound longer than max_seconds.
    """
    sampling = Sampling(fps, num_frames, min_frames, max_frames)
    first, last = segment(start, end)
    if isinstance(source, list | tuple | np.ndarray):
        if start is not None or end is not None or num_frames is not None:
            raise ValueError("start, end and nframes cut files, not frames; select them yourself")
        return Video(_given_frames(source, size), fps, fps)
    with open_source(source) as opened:
        if is_picture(opened):
            frames, true_fps = read_animation(opened, sampling, first, last, size=size)
            return Video(frames, true_fps, fps)
        frames, true_fps, wave = read_film(
            opened, sampling, first, last, sound=sound, size=size, max_seconds=max_seconds
        )
        return Video(frames, true_fps, fps, wave)


def video_size(
    num_frames: int,
    height: int,
    width: int,
    *,
    processor: Processor,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    total_pixels: int | None = None,
) -> tuple[int, int]:
    """Return the (h, w) of every frame, so that each and all together keep to the processor."""
    least = min_pixels or min(processor.video_min_pixels, max_pixels or math.inf)
    total = total_pixels or processor.video_total_pixels
    share = min(processor.video_max_pixels, total / num_frames * FRAME_FACTOR)
    most = max(share, int(least * LEAST_GROWTH))
    if max_pixels is not None:
        most = min(most, max_pixels)
    return target_size(height, width, cell=processor.cell, min_pixels=least, max_pixels=most)


def video_patches(
    frames: Bytes, *, processor: Processor, size: tuple[int, int] | None = None
) -> tuple[Floats, Grid]:
    """Return the patches [P,1176] of frames uint8 [n,H,W,3] and their grid (pairs, rows, columns).

    An odd last frame is repeated. size is the (h, w) to resize to, multiples of 28.
    """
    num_frames, height, width, _ = frames.shape
    size = size or video_size(num_frames, height, width, processor=processor)
    pixels = [resize(frame, size=size) for frame in frames]
    pixels += [pixels[-1]] * (-num_frames % processor.temporal_patch_size)
    return patchify(pixels, processor=processor)


def _given_frames(source: Frames | NDArray[Any], size: Size | None) -> Bytes:
    """Check frames that are sampled already and return them as uint8 [n,H,W,3]."""
    if isinstance(source, list | tuple):
        if not source:
            raise ValueError("the given list of frames is empty; give at least one picture")
        return stacked(sized([load_image(picture) for picture in source], size))
    if source.ndim == 4 and source.shape[1] == 3 and source.shape[3] != 3:
        source = source.transpose(0, 2, 3, 1)
    if source.ndim != 4 or source.shape[3] != 3 or 0 in source.shape:
        raise ValueError(
            f"the given frames have shape {source.shape}; give [frames, height, width, 3]"
        )
    if source.dtype != np.uint8:
        raise ValueError(f"the given frames are {source.dtype}; give 8-bit values (uint8)")
    return stacked(sized(list(source), size))
