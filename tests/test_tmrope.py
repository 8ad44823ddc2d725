"""Positions equal the reference's, whole and in pieces, and obey their definition."""

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from thinktalk.config import ThinkerConfig
from thinktalk.model.tmrope import Track, extend_positions, prompt_positions

GOLDEN = Path(__file__).parent / "golden"
CONFIG = ThinkerConfig()
RECORDED: list[dict[str, Any]] = json.loads((GOLDEN / "positions.json").read_text())
TEXT = 1000
AUDIO, IMAGE, VIDEO = CONFIG.media_token_ids
AUDIO_BOS, AUDIO_EOS = CONFIG.audio_start_token_id, CONFIG.audio_end_token_id
VISION_BOS, VISION_EOS = CONFIG.vision_start_token_id, CONFIG.vision_end_token_id
MEDIA = ("audio_tokens", "image_grids", "video_grids", "seconds_per_pair", "video_has_audio")


def test_recorded_prompts() -> None:
    """Every prompt that transformers' get_rope_index was recorded on, but for disputed borders."""
    undisputed = [prompt for prompt in RECORDED if not prompt["disputed"]]
    assert len(undisputed) >= 300
    wrong = []
    for number, prompt in enumerate(undisputed):
        positions, following = positions_of(prompt)
        if digest(positions) != prompt["sha256"] or [following - 1] * 3 != prompt["last"]:
            wrong.append(number)
    assert not wrong, f"{len(wrong)} of {len(undisputed)} prompts differ: {wrong[:20]}"


def test_recorded_prompts_number_by_number() -> None:
    with safe_open(GOLDEN / "encoders.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("positions.")]  # noqa: SIM118
        assert names
        for name in names:
            prompt = RECORDED[int(name.removeprefix("positions."))]
            positions, _ = positions_of(prompt)
            assert torch.equal(positions, file.get_tensor(name).long()), name


def test_disputed_borders_only_swap() -> None:
    """There the reference places tokens of one track at the other's: the same set of positions."""
    disputed = [prompt for prompt in RECORDED if prompt["disputed"]]
    assert disputed
    for prompt in disputed:
        columns = sorted(map(tuple, positions_of(prompt)[0].T.tolist()))
        assert digest(torch.tensor(columns).T) == prompt["sha256_sorted"]


@pytest.mark.parametrize("number", range(0, 400, 4))
def test_pieces_equal_whole(number: int) -> None:
    prompt = RECORDED[number]
    ids, (whole, following) = ids_of(prompt), positions_of(prompt)
    generator = torch.Generator().manual_seed(number)
    borders = torch.randint(0, len(ids) + 1, (5,), generator=generator).sort().values.tolist()
    starts_of_chunks = [i for i in range(1, len(ids)) if ids[i] == VIDEO and ids[i - 1] == AUDIO]
    for cuts in (borders, starts_of_chunks, range(1, len(ids), 97), [0, 0, 1]):
        positions, last = in_pieces(ids, prompt, [0, *cuts, len(ids)])
        assert torch.equal(positions, whole)
        assert last == following


def test_one_token_at_a_time() -> None:
    items = (Item("text", 3), Item("sounding", grid=(5, 4, 6), audio=130), Item("silent"))
    prompt = compose((*items, Item("image", grid=(1, 4, 2)), Item("audio", audio=9)))
    ids = ids_of(prompt)
    whole, _ = positions_of(prompt)
    assert torch.equal(in_pieces(ids, prompt, list(range(len(ids) + 1)))[0], whole)


def in_pieces(ids: Tensor, prompt: dict[str, Any], borders: list[int]) -> tuple[Tensor, int]:
    """Each piece is given the media whose first token it holds, with as yet unknown lengths."""
    opens = [
        i
        for i in range(len(ids))
        if ids[i] in (IMAGE, VIDEO)
        and (ids[i - 1] == VISION_BOS or (ids[i - 2] == VISION_BOS and ids[i - 1] == AUDIO_BOS))
    ]
    images = dict(zip([i for i in opens if ids[i] == IMAGE], prompt["image_grids"], strict=True))
    clips = zip(prompt["video_grids"], prompt["seconds_per_pair"], strict=True)
    videos = dict(zip([i for i in opens if ids[i] == VIDEO], clips, strict=True))
    track, pieces = Track(), []
    for start, end in pairwise(borders):
        here = [videos[i] for i in range(start, end) if i in videos]
        piece, track = extend_positions(
            ids[start:end],
            track=track,
            config=CONFIG,
            image_grids=[images[i] for i in range(start, end) if i in images],
            video_grids=[(0, *grid[1:]) for grid, _ in here],
            seconds_per_pair=[seconds for _, seconds in here],
        )
        pieces.append(piece)
    return torch.cat(pieces, dim=1), track.next


@dataclass(frozen=True)
class Item:
    kind: str
    count: int = 0
    grid: tuple[int, int, int] = (3, 4, 6)
    seconds: float = 1.0
    audio: int = 0


def compose(items: tuple[Item, ...]) -> dict[str, Any]:
    """A prompt in the recorded form; the order of a sounding video is worked out token by token."""
    ids: list[int] = []
    prompt: dict[str, Any] = {name: [] for name in MEDIA}
    for item in items:
        if item.kind == "text":
            ids += [TEXT] * item.count
        elif item.kind == "audio":
            ids += [AUDIO_BOS, *[AUDIO] * item.audio, AUDIO_EOS]
            prompt["audio_tokens"].append(item.audio)
        elif item.kind == "image":
            ids += [VISION_BOS, *[IMAGE] * (item.grid[1] * item.grid[2] // 4), VISION_EOS]
            prompt["image_grids"].append(item.grid)
        else:
            sounding = item.kind == "sounding"
            ids += sounding_video(item) if sounding else silent_video(item)
            prompt["audio_tokens"] += [item.audio] * sounding
            prompt["video_grids"].append(item.grid)
            prompt["seconds_per_pair"].append(item.seconds)
            prompt["video_has_audio"].append(sounding)
    return prompt | {"runs": [[token, 1] for token in ids]}


def silent_video(item: Item) -> list[int]:
    pairs, rows, columns = item.grid
    return [VISION_BOS, *[VIDEO] * (pairs * rows * columns // 4), VISION_EOS]


def sounding_video(item: Item) -> list[int]:
    pairs, rows, columns = item.grid
    frames = [(pair * item.seconds // 2, 0) for pair in range(pairs)]
    tokens = [chunk for chunk in frames for _ in range(rows * columns // 4)]
    tokens += [(i // 50, 1) for i in range(item.audio)]
    track = [AUDIO if sound else VIDEO for _, sound in sorted(tokens)]
    return [VISION_BOS, AUDIO_BOS, *track, AUDIO_EOS, VISION_EOS]


def reasoned(items: tuple[Item, ...]) -> list[tuple[int, ...]]:
    """Positions straight from the definition, one token after the other. Times are exact here."""
    out: list[tuple[int, ...]] = []
    following = 0
    for item in items:
        if item.kind in ("text", "audio"):
            count = item.count if item.kind == "text" else item.audio + 2
            out += [(following + i,) * 3 for i in range(count)]
            following += count
            continue
        out += [(following,) * 3] * (2 if item.kind == "sounding" else 1)
        base = following + 1
        pairs, rows, columns = item.grid
        video: list[tuple[int, ...]] = [
            (base + int(pair * item.seconds * 25), base + row, base + column)
            for pair in range(1 if item.kind == "image" else pairs)
            for row in range(rows // 2)
            for column in range(columns // 2)
        ]
        sound: list[tuple[int, ...]] = [(base + i,) * 3 for i in range(item.audio)]
        if item.kind != "sounding":
            out += video
            following = max(max(place) for place in video) + 1
        else:
            chunk: list[tuple[int, ...]] = []
            for number in range(10_000):
                for track in (video, sound):
                    times = range(base + 50 * number, base + 50 * (number + 1))
                    piece = [place for place in track if place[0] in times]
                    chunk = piece or chunk  # of an empty piece nothing is emitted
                    out += piece
                if max(video[-1][0], sound[-1][0]) < base + 50 * (number + 1):
                    break
            following = max(max(place) for place in chunk) + 1
        out += [(following,) * 3] * (2 if item.kind == "sounding" else 1)
        following += 1
    return out


grids = st.tuples(st.integers(1, 9), st.sampled_from([2, 4, 10]), st.sampled_from([2, 6, 18]))
counts = st.integers(1, 230)
kinds = st.sampled_from(["text", "audio", "image", "silent", "sounding"])
some_items = st.lists(
    st.builds(Item, kinds, counts, grids, st.sampled_from([0.5, 0.75, 1.0, 1.25, 2.0]), counts),
    min_size=1,
    max_size=7,
).map(tuple)


@settings(max_examples=150, deadline=None)
@given(some_items)
def test_mixed_silent_and_sounding_videos(items: tuple[Item, ...]) -> None:
    """What the reference cannot mix, against the definition; times here are exact in float32."""
    items = tuple(map(alone, items))
    positions, _ = positions_of(compose(items))
    assert list(map(tuple, positions.T.tolist())) == reasoned(items)


def alone(item: Item) -> Item:
    """Images have one pair."""
    return Item("image", grid=(1, *item.grid[1:])) if item.kind == "image" else item


@settings(max_examples=60, deadline=None)
@given(some_items)
def test_properties(items: tuple[Item, ...]) -> None:
    items = tuple(map(alone, items))
    prompt = compose(items)
    ids, (positions, following) = ids_of(prompt), positions_of(prompt)
    assert positions.shape == (3, len(ids)) and positions.dtype == torch.int64
    text = (ids != IMAGE) & (ids != VIDEO)
    assert (positions[:, text] == positions[0, text]).all(), "text and audio advance all axes alike"
    assert (positions >= 0).all()
    assert following == positions[0, -1] + 1 or not text[-1]
    # what follows changes nothing
    cut = len(ids) // 2
    later = ids.clone()
    later[cut:] = TEXT
    kept, _ = extend_positions(
        later,
        track=Track(),
        config=CONFIG,
        **media_before(ids, prompt, cut),
    )
    assert torch.equal(kept[:, :cut], positions[:, :cut])


def media_before(ids: Tensor, prompt: dict[str, Any], cut: int) -> dict[str, Any]:
    opening = [i for i in range(1, cut) if ids[i - 1] == VISION_BOS]
    opened = [ids[i].item() for i in opening]
    num_images = opened.count(IMAGE)
    num_videos = len(opened) - num_images
    if num_videos and opened[-1] == AUDIO_BOS and opening[-1] == cut - 1:
        num_videos -= 1  # its first frame is not there yet
    return {
        "image_grids": prompt["image_grids"][:num_images],
        "video_grids": prompt["video_grids"][:num_videos],
        "seconds_per_pair": prompt["seconds_per_pair"][:num_videos],
    }


def test_a_wrong_account_of_the_media_is_noticed() -> None:
    prompt = compose((Item("sounding", audio=30), Item("image", grid=(1, 4, 4))))
    for name, value in (
        ("audio_tokens", [29]),
        ("image_grids", []),
        ("image_grids", [(1, 4, 6)]),
        ("video_grids", [(2, 4, 6)]),
        ("video_has_audio", [False]),
    ):
        with pytest.raises(AssertionError):
            positions_of(prompt | {name: value})


def positions_of(prompt: dict[str, Any]) -> tuple[Tensor, int]:
    media = {name: prompt[name] for name in MEDIA}
    return prompt_positions(ids_of(prompt), config=CONFIG, **media)


def ids_of(prompt: dict[str, Any]) -> Tensor:
    tokens, counts = torch.tensor(prompt["runs"]).T
    return tokens.repeat_interleave(counts)


def digest(positions: Tensor) -> str:
    return hashlib.sha256(positions.contiguous().numpy().astype("<i8").tobytes()).hexdigest()
