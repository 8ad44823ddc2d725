"""A conversation in, everything the model needs to answer it out: ids, mels, patches.

Order of work: the chat template, decoding of the media, counting of tokens, the check that all fits
into the context, and only then the mels and patches. Expansion and interleaving: model.md 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinktalk.config import ThinkerConfig
from thinktalk.media.chat import Control, Medium, Piece, as_messages, render
from thinktalk.media.decode import load_audio, load_image
from thinktalk.media.image import Floats, Grid, Processor, image_size, patches
from thinktalk.media.mel import EAR_HOP_SAMPLES, log_mel
from thinktalk.media.source import refusal, source_name
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.media.video import Video, load_video, video_patches, video_size

Options = Mapping[str, Any]

AUDIO_TOKENS_PER_SECOND = 25
SAMPLING_OPTIONS = ("fps", "num_frames", "min_frames", "max_frames", "start", "end")
PIXEL_OPTIONS = ("min_pixels", "max_pixels", "total_pixels")


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model takes it. Media stand in order of appearance."""

    ids: NDArray[np.int64]  # [T], media expanded to one placeholder per token
    mels: list[Floats] = field(default_factory=list)  # [128,F], sound tracks of videos included
    images: list[tuple[Floats, Grid]] = field(default_factory=list)  # patches [P,1176]
    videos: list[tuple[Floats, Grid, float]] = field(default_factory=list)  # seconds per pair
    video_has_audio: list[bool] = field(default_factory=list)


def build_prompt(
    messages: str | Sequence[Any],
    *,
    tokenizer: Tokenizer,
    config: ThinkerConfig,
    processor: Processor,
    exact: bool = False,
    audio_in_video: bool = True,
    system: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    reply: bool = True,
) -> Prompt:
    """Return the prompt of chat messages, or of a plain list of texts and media (chat.as_messages).

    exact follows the reference where it differs from the streamable definition: mel maximum of the
    whole clip, requested instead of true frame rate. audio_in_video, overridden by an item's own
    option, lets the model hear videos that have sound. Raises ValueError, before features are
    computed, for media that cannot be read and for prompts that do not fit into the context.
    """
    return assemble(
        render(as_messages(messages), system=system, tools=tools, reply=reply),
        tokenizer=tokenizer,
        config=config,
        processor=processor,
        exact=exact,
        audio_in_video=audio_in_video,
    )


def assemble(
    pieces: list[Piece],
    *,
    tokenizer: Tokenizer,
    config: ThinkerConfig,
    processor: Processor,
    exact: bool = False,
    audio_in_video: bool = True,
) -> Prompt:
    """Return the prompt, or the part of one, that rendered pieces stand for; see build_prompt."""
    _check_ids(tokenizer, config)
    desk = _Desk(tokenizer, config, processor, exact, audio_in_video)
    ids: list[int] = []
    for piece in _merged(pieces, tokenizer):
        if isinstance(piece, str):
            ids += tokenizer.encode(piece)
        elif isinstance(piece, Control):
            ids.append(tokenizer.id_of(piece.name))
        else:
            ids += desk.take(piece)
    _check_length(ids, config)
    return desk.prompt(ids)


def num_audio_tokens(num_samples: int) -> int:
    """Return the tokens of a 16 kHz clip: 25 a second, none below 30 ms."""
    num_frames = -(-num_samples // EAR_HOP_SAMPLES)
    return max(0, ((num_frames - 1) // 2 + 1 - 2) // 2 + 1)


def interleave(
    grid: Grid, *, merge: int, seconds_per_pair: float, num_audio: int, config: ThinkerConfig
) -> list[int]:
    """Return the placeholder ids of a video with sound: in chunks of 2 s, pictures before sound."""
    chunk = config.position_id_per_seconds * config.seconds_per_chunk
    instants = np.arange(grid[0]) * seconds_per_pair * config.position_id_per_seconds
    seen = _chunks(np.repeat(instants, grid[1] * grid[2] // merge**2), chunk)
    heard = _chunks(np.arange(num_audio), chunk)
    ids: list[int] = []
    for number in range(max(len(seen), len(heard))):
        if number < len(seen):
            ids += [config.video_token_index] * seen[number]
        if number < len(heard):
            ids += [config.audio_token_index] * heard[number]
    return ids


class _Desk:
    """Takes media one by one, answers with their ids, and keeps their features for later."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ThinkerConfig,
        processor: Processor,
        exact: bool,
        audio_in_video: bool,
    ) -> None:
        self.tokenizer, self.config, self.processor = tokenizer, config, processor
        self.exact, self.audio_in_video = exact, audio_in_video
        self._context = config.text_config.max_position_embeddings
        self.mels: list[Callable[[], Floats]] = []
        self.images: list[Callable[[], tuple[Floats, Grid]]] = []
        self.videos: list[Callable[[], tuple[Floats, Grid, float]]] = []
        self.video_has_audio: list[bool] = []

    def take(self, medium: Medium) -> list[int]:
        """Load a medium and return the ids that stand for it between its two markers."""
        name = source_name(medium.source)
        try:
            if medium.kind == "audio":
                return self._audio(medium.source, medium.options, name)
            if medium.kind == "image":
                return self._image(medium.source, medium.options)
            return self._video(medium.source, dict(medium.options))
        except ValueError as error:
            if name in str(error):
                raise
            raise ValueError(f"{name}: {error}") from error
        except TypeError as error:
            raise refusal(name, f"has an option of a wrong type ({error})", "correct it") from error

    def prompt(self, ids: list[int]) -> Prompt:
        """Compute all features."""
        return Prompt(
            ids=np.array(ids, np.int64),
            mels=[mel() for mel in self.mels],
            images=[image() for image in self.images],
            videos=[video() for video in self.videos],
            video_has_audio=self.video_has_audio,
        )

    def _audio(self, source: Any, options: Options, name: str) -> list[int]:
        segment = {key: options[key] for key in ("start", "end") if key in options}
        if "sample_rate" in options:
            source = (source, int(options["sample_rate"]))
        wave = load_audio(source, max_seconds=self._context / AUDIO_TOKENS_PER_SECOND, **segment)
        count = num_audio_tokens(len(wave))
        if not count:
            raise refusal(name, "is shorter than 30 ms", "give a longer recording")
        self._hear(wave)
        return [self.config.audio_token_index] * count

    def _image(self, source: Any, options: Options) -> list[int]:
        image = load_image(source)
        height, width, _ = image.shape
        pixels = {key: options[key] for key in ("min_pixels", "max_pixels") if key in options}
        size = self._size(options) or image_size(height, width, processor=self.processor, **pixels)
        self.images.append(lambda: patches(image, processor=self.processor, size=size))
        count = size[0] * size[1] // self.processor.cell**2
        return [self.config.image_token_index] * count

    def _video(self, source: Any, options: dict[str, Any]) -> list[int]:
        pixels = {key: options[key] for key in PIXEL_OPTIONS if key in options}
        defaults = {
            "fps": self.processor.video_fps,
            "min_frames": self.processor.video_min_frames,
            "max_frames": self.processor.video_max_frames,
        }
        sampling = {key: options[key] for key in SAMPLING_OPTIONS if key in options}
        fixed = self._size(options)

        def size(num_frames: int, height: int, width: int) -> tuple[int, int]:
            h, w = fixed or video_size(
                num_frames, height, width, processor=self.processor, **pixels
            )
            self._check_video(num_frames, h, w)
            return h, w

        hear = options.get("audio_in_video", self.audio_in_video)
        separate, limit = options.get("sound"), self._context / AUDIO_TOKENS_PER_SECOND
        video = load_video(
            source,
            sound=hear and separate is None,
            size=size,
            max_seconds=limit,
            **(defaults | sampling),
        )
        if separate is not None:  # a recording of its own takes the place of the film's sound
            cut = {key: options[key] for key in ("start", "end") if key in options}
            video = replace(video, sound=load_audio(separate, max_seconds=limit, **cut))
        return self._video_ids(video)

    def _check_video(self, num_frames: int, height: int, width: int) -> None:
        """Refuse a video that cannot fit even alone, before all its frames are decoded."""
        pairs = -(-num_frames // self.processor.temporal_patch_size)
        count = pairs * height * width // self.processor.cell**2
        if count >= self._context:
            raise ValueError(
                f"{num_frames} frames of {width} x {height} pixels need {count} tokens, but the "
                f"context of this model holds {self._context}; lower fps, max_pixels or "
                "max_frames, or take a part with start and end"
            )

    def _video_ids(self, video: Video) -> list[int]:
        num_frames, height, width, _ = video.frames.shape
        processor, config = self.processor, self.config
        grid = (
            -(-num_frames // processor.temporal_patch_size),
            height // processor.patch_size,
            width // processor.patch_size,
        )
        seconds = video.seconds_per_pair(exact=self.exact)
        size = (height, width)
        self.videos.append(
            lambda: (*video_patches(video.frames, processor=processor, size=size), seconds)
        )
        num_audio = 0 if video.sound is None else num_audio_tokens(len(video.sound))
        self.video_has_audio.append(num_audio > 0)
        if video.sound is None or not num_audio:
            cells = grid[0] * grid[1] * grid[2] // processor.merge_size**2
            return [config.video_token_index] * cells
        self._hear(video.sound)
        tracks = interleave(
            grid,
            merge=processor.merge_size,
            seconds_per_pair=seconds,
            num_audio=num_audio,
            config=config,
        )
        return [config.audio_start_token_id, *tracks, config.audio_end_token_id]

    def _hear(self, wave: Floats) -> None:
        maximum = "clip" if self.exact else "running"
        self.mels.append(lambda: log_mel(wave, maximum=maximum))

    def _size(self, options: Options) -> tuple[int, int] | None:
        """The (h, w) that resized_height and resized_width ask for, in whole cells."""
        height, width = options.get("resized_height"), options.get("resized_width")
        if height is None and width is None:
            return None
        if height is None or width is None:
            raise ValueError("resized_height and resized_width belong together; give both")
        return image_size(height, width, processor=self.processor)


def _merged(pieces: list[Piece], tokenizer: Tokenizer) -> list[Piece]:
    """Join neighbouring texts: tokens may reach across their border, as in one rendered string."""
    out: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Control) and not piece.name.startswith("<|"):
            # tool call tags are ordinary text for a tokenizer without such tokens
            piece = piece if tokenizer.knows(piece.name) else piece.name
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        else:
            out.append(piece)
    return out


def _chunks(values: NDArray[np.generic], width: int) -> list[int]:
    """Return how many of the rising values fall into each chunk [k width, (k+1) width).

    As the reference, one value opens at most one chunk: behind a gap of several chunks the borders
    lag until they have caught up.
    """
    sizes, count = [], 0
    for value in values.tolist():
        if value >= (len(sizes) + 1) * width:
            sizes.append(count)
            count = 0
        count += 1
    return [*sizes, count]


def _check_ids(tokenizer: Tokenizer, config: ThinkerConfig) -> None:
    for name, expected in (
        ("<|vision_bos|>", config.vision_start_token_id),
        ("<|vision_eos|>", config.vision_end_token_id),
        ("<|audio_bos|>", config.audio_start_token_id),
        ("<|audio_eos|>", config.audio_end_token_id),
    ):
        if tokenizer.id_of(name) != expected:
            raise ValueError(
                f"{name} is {tokenizer.id_of(name)} in the tokenizer but {expected} in "
                "config.json; take both from the same checkpoint"
            )


def _check_length(ids: list[int], config: ThinkerConfig) -> None:
    context = config.text_config.max_position_embeddings
    if len(ids) < context:
        return
    kinds = zip(("audio", "image", "video"), config.media_token_ids, strict=True)
    counts = {kind: ids.count(token) for kind, token in kinds}
    counts["text"] = len(ids) - sum(counts.values())
    listed = ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)
    raise ValueError(
        f"the prompt is too long: {len(ids)} tokens ({listed}), but the context of this model "
        f"holds {context} with the reply; shorten the text, cut media with start and end, or lower "
        "fps, max_pixels or max_frames"
    )
