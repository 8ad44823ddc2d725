"""Step 6: the (time, row, column) position of every prompt token.

Shapes: T tokens; positions are int64 [3,T], axes t, h, w. One unit of t is 40 ms: one audio token.

Text and audio advance all axes by one per token. An image or video starts at the next free
position: t follows the time of the frame pair, h and w the place in the frame. In a video with
sound both tracks start at the same position, and the tokens come in chunks of 2 s, first the
chunk's frames, then its sound. Time-aligned multimodal rope, Qwen2.5-Omni report 2025; reference:
get_rope_index in transformers modeling_qwen2_5_omni.py.

A token's position never depends on what comes later, so a prompt may arrive in pieces.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinktalk.config import ThinkerConfig

Grid = Sequence[int]  # frame pairs, rows, columns; in patches, before the 2x2 merge


def prompt_positions(
    ids: Tensor,
    *,
    config: ThinkerConfig,
    audio_tokens: Sequence[int] = (),
    image_grids: Sequence[Grid] = (),
    video_grids: Sequence[Grid] = (),
    seconds_per_pair: Sequence[float] = (),
    video_has_audio: Sequence[bool] = (),
) -> tuple[Tensor, int]:
    """ids int64 [T] of one row -> positions int64 [3,T] and the position of the token after them.

    Media are listed in order of appearance; the sound tracks of videos are counted among the
    audios. Silent and sounding videos may be mixed, which the reference cannot do. The tokens'
    order is taken from the ids. (Where the reference's processor and model round a chunk border
    differently, as for 1.3, 2.6, 3.7 and 7.4 frames per second, the reference swaps the positions
    of some tokens of the two tracks.)
    """
    merge = config.vision_config.spatial_merge_size**2
    expected = [sum(audio_tokens)]
    for grids in (image_grids, video_grids):
        expected.append(sum(pairs * rows * columns // merge for pairs, rows, columns in grids))
    found = [int((ids == token).sum()) for token in config.media_token_ids]
    assert found == expected, f"audio, image, video tokens: {found} in the ids, {expected} in media"
    opening = ids[1:][ids[:-1] == config.vision_start_token_id]
    sounding = (
        opening[opening != config.image_token_index] == config.audio_start_token_id
    ).tolist()
    assert sounding == [bool(has) for has in video_has_audio], (sounding, video_has_audio)
    positions, track = extend_positions(
        ids,
        track=Track(),
        config=config,
        image_grids=image_grids,
        video_grids=video_grids,
        seconds_per_pair=seconds_per_pair,
    )
    return positions, track.next


@dataclass(frozen=True)
class Track:
    """How far the positions of a row have come: all that later tokens depend on."""

    next: int = 0  # what a text token would get; decoding counts on from here on all axes
    last_id: int = -1
    # of the image or video that is arriving:
    base: int = 0  # position of its first token: what follows the last text
    frame: tuple[int, int] | None = None  # merged rows and columns; None before its first token
    seconds_per_pair: float = 1.0
    num_patches: int = 0  # image or video tokens so far
    has_audio: bool = False
    num_audio: int = 0  # tokens of its sound track so far


def extend_positions(
    ids: Tensor,
    *,
    track: Track,
    config: ThinkerConfig,
    image_grids: Sequence[Grid] = (),
    video_grids: Sequence[Grid] = (),
    seconds_per_pair: Sequence[float] = (),
) -> tuple[Tensor, Track]:
    """The next piece of a row: ids int64 [T] -> positions int64 [3,T] and the track behind them.

    The piece may be cut anywhere. Grids and times are those of the images and videos whose first
    token is in this piece; the number of frame pairs in a grid is not used, so a video may be
    opened before its length is known.
    """
    assert len(video_grids) == len(seconds_per_pair), (video_grids, seconds_per_pair)
    media = {
        config.image_token_index: iter([(grid, 1.0) for grid in image_grids]),
        config.video_token_index: iter(zip(video_grids, seconds_per_pair, strict=True)),
    }
    spans = [torch.empty(3, 0, dtype=torch.int64)]
    for token, count in runs(ids, config):
        if token in media:
            if track.frame is None:
                track = open_clip(track, media[token], config)
            span, track = clip_span(track, count, config.position_id_per_seconds)
        elif token == config.audio_token_index and track.has_audio:
            span, track = sound_span(track, count)
        else:
            span, track = text_span(track, token, count, config)
        spans.append(span)
        track = replace(track, last_id=token)
    assert not any(list(rest) for rest in media.values()), "more images or videos than in the ids"
    return torch.cat(spans, dim=1), track


def runs(ids: Tensor, config: ThinkerConfig) -> list[tuple[int, int]]:
    """(id, count) of neighbours that are placed together; -1 is ordinary text."""
    marks = (
        *config.media_token_ids,
        config.audio_start_token_id,
        config.audio_end_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    )
    marked = torch.isin(ids, torch.tensor(marks, device=ids.device))
    tokens, counts = torch.where(marked, ids, -1).unique_consecutive(return_counts=True)
    return list(zip(tokens.tolist(), counts.tolist(), strict=True))


def text_span(track: Track, token: int, count: int, config: ThinkerConfig) -> tuple[Tensor, Track]:
    """Text, markers and the audio of no video. A video's and its sound's begin share a position,
    and so do their ends."""
    opens_sound = token == config.audio_start_token_id and (
        track.last_id == config.vision_start_token_id
    )
    closes_both = token == config.vision_end_token_id and (
        track.has_audio and track.last_id == config.audio_end_token_id
    )
    start = track.next - int(opens_sound or closes_both)
    end = start + count
    track = replace(track, next=end, base=end, has_audio=track.has_audio or opens_sound)
    if token in (config.vision_start_token_id, config.vision_end_token_id):
        track = Track(next=end, base=end)
    return line(start, count), track


def sound_span(track: Track, count: int) -> tuple[Tensor, Track]:
    """The next tokens of a video's sound track."""
    start = track.base + track.num_audio
    # what follows counts from the last piece of either track, even if the other reached further
    return line(start, count), replace(track, next=start + count, num_audio=track.num_audio + count)


def open_clip(track: Track, media: Iterator[tuple[Grid, float]], config: ThinkerConfig) -> Track:
    grid, seconds = next(media, (None, 0.0))
    assert grid is not None, "fewer images or videos than in the ids"
    merge = config.vision_config.spatial_merge_size
    return replace(track, frame=(grid[1] // merge, grid[2] // merge), seconds_per_pair=seconds)


def clip_span(track: Track, count: int, units_per_second: int) -> tuple[Tensor, Track]:
    """The next tokens of an image or video, in the order pair, row, column."""
    assert track.frame is not None
    rows, columns = track.frame
    index = torch.arange(track.num_patches, track.num_patches + count)
    pair, place = index // (rows * columns), index % (rows * columns)
    # the reference computes times in float32 and cuts them, so rounding decides some of them
    time = (
        pair.float() * torch.tensor(track.seconds_per_pair, dtype=torch.float32) * units_per_second
    ).long()
    span = torch.stack((time, place // columns, place % columns)) + track.base
    end = max(int(time[-1]), rows - 1, columns - 1) + 1
    return span, replace(track, next=track.base + end, num_patches=track.num_patches + count)


def line(start: int, count: int) -> Tensor:
    """[3,count], all axes alike, counting from start."""
    return torch.arange(start, start + count).expand(3, -1)
