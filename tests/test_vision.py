"""Vision tokens equal the reference's; windows, frame pairs and images keep to themselves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from thinktalk.config import VisionConfig
from thinktalk.model.vision import VisionEncoder, axial_rotation, group, patch_places

INPUT_STEP = 1 / 32  # recorded inputs are small integers times this
GRIDS = ((1, 2, 2), (1, 6, 8), (1, 10, 18), (5, 4, 6), (2, 16, 12))

with safe_open(Path(__file__).parent / "golden" / "encoders.safetensors", "pt") as file:
    CONFIG = VisionConfig.from_dict(json.loads(file.metadata()["vision"]))
    WEIGHTS = {
        name.removeprefix("vision."): file.get_tensor(name)
        for name in file.keys()  # noqa: SIM118 (the file is no mapping)
        if name.startswith("vision.")
    }
    MIXTURE, SOURCES = file.get_tensor("vision_mixture"), file.get_tensor("vision_sources")
    PATCHES = (MIXTURE.float() @ SOURCES.float()) * INPUT_STEP
    TOKENS, BF16_TOKENS = (file.get_tensor(f"vision_tokens.{kind}") for kind in ("fp32", "bf16"))


def recorded_encoder(dtype: torch.dtype, config: VisionConfig = CONFIG) -> VisionEncoder:
    """Built without storage, as large checkpoints are."""
    with torch.device("meta"):
        encoder = VisionEncoder(config)
    encoder.load_state_dict({k: v.to(dtype) for k, v in WEIGHTS.items()}, assign=True)
    return encoder.eval().requires_grad_(False)


ENCODER = recorded_encoder(torch.float32)


def test_reference_float32() -> None:
    """All images and videos in one call, and each alone."""
    tokens = ENCODER(PATCHES, torch.tensor(GRIDS))
    assert tokens.shape == TOKENS.shape == (len(PATCHES) // 4, CONFIG.out_hidden_size)
    limit = 1e-5 * TOKENS.abs().max()
    assert (tokens - TOKENS).abs().max() < limit
    sizes = torch.tensor(GRIDS).prod(1)
    parts = PATCHES.split(sizes.tolist()), TOKENS.split((sizes // 4).tolist())
    for grid, patches, expected in zip(GRIDS, *parts, strict=True):
        assert (ENCODER(patches, torch.tensor([grid])) - expected).abs().max() < limit, grid


def test_reference_bfloat16() -> None:
    theirs = (BF16_TOKENS.float() - TOKENS).square().mean().sqrt()
    tokens = recorded_encoder(torch.bfloat16)(PATCHES, torch.tensor(GRIDS))
    assert tokens.dtype == torch.bfloat16
    assert (tokens.float() - TOKENS).square().mean().sqrt() < 2 * theirs


def touched_by(encoder: VisionEncoder, grid: tuple[int, int, int], patch: int) -> Tensor:
    """bool [tokens]: which of them change with one patch."""
    patches = PATCHES[: grid[0] * grid[1] * grid[2]].clone()
    before = encoder(patches, torch.tensor([grid]))
    patches[patch] += 1
    return (encoder(patches, torch.tensor([grid])) - before).abs().amax(1) > 1e-5


def test_a_window_reaches_112_pixels() -> None:
    """Without full blocks, a patch reaches the tokens of its 4x4-token window and no other."""
    windowed = recorded_encoder(torch.float32, replace(CONFIG, fullatt_block_indexes=()))
    touched = touched_by(windowed, (1, 12, 20), 0).view(6, 10)
    expected = torch.zeros(6, 10, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(touched, expected)
    last = touched_by(windowed, (1, 12, 20), 12 * 20 - 1).view(6, 10)  # the ragged corner, 2x2
    expected = torch.zeros(6, 10, dtype=torch.bool)
    expected[4:, 8:] = True
    assert torch.equal(last, expected)


def test_a_full_block_reaches_its_frame_pair() -> None:
    touched = touched_by(ENCODER, (3, 12, 20), 250).view(3, 60)
    assert touched.all(1).tolist() == touched.any(1).tolist() == [False, True, False]


def test_one_frame_pair_at_a_time() -> None:
    patches = PATCHES[: 3 * 12 * 20]
    whole = ENCODER(patches, torch.tensor([[3, 12, 20]]))
    pairs = [ENCODER(pair, torch.tensor([[1, 12, 20]])) for pair in patches.split(12 * 20)]
    assert torch.allclose(torch.cat(pairs), whole, atol=1e-5)


sides = st.integers(1, 13).map(lambda n: 2 * n)
some_grids = st.lists(st.tuples(st.integers(1, 3), sides, sides), min_size=1, max_size=4)


@settings(deadline=None)
@given(some_grids)
def test_places_and_groups(grids: list[tuple[int, int, int]]) -> None:
    """Against the definition, patch by patch; attention's batches hold whole groups."""
    expected = [
        (row, column, (n, pair, row // 8, column // 8), (n, pair))
        for n, (pairs, height, width) in enumerate(grids)
        for pair in range(pairs)
        for block_row in range(0, height, 2)
        for block_column in range(0, width, 2)
        for row in (block_row, block_row + 1)
        for column in (block_column, block_column + 1)
    ]
    rows, columns, windows, pairs = zip(*expected, strict=True)
    places = patch_places(torch.tensor(grids), CONFIG)
    assert places.row.tolist() == list(rows) and places.column.tolist() == list(columns)
    rotation = axial_rotation(places, 8)
    for numbers, keys in ((places.window, windows), (places.pair, pairs)):
        members = dict.fromkeys(keys, 0)
        assert len(set(numbers.tolist())) == len(members) == int(numbers.max()) + 1
        groups = group(numbers, rotation, device=torch.device("cpu"))
        assert groups.order.sort().values.tolist() == list(range(len(keys)))
        assert groups.order[groups.inverse].tolist() == list(range(len(keys)))
        start = 0
        for num_groups, size in groups.batches:
            for _ in range(num_groups):
                inside = {keys[i] for i in groups.order[start : start + size].tolist()}
                assert len(inside) == 1 and members[inside.pop()] == 0
                start += size
        assert start == len(keys) and len({size for _, size in groups.batches}) == len(
            groups.batches
        )
        assert torch.equal(groups.cos, rotation[0][groups.order])


def test_one_rectangle_needs_few_batches() -> None:
    """Not one call of attention per window: 30 windows, 9 ragged along one side, one along both."""
    places = patch_places(torch.tensor([[1, 36, 44]]), CONFIG)
    groups = group(places.window, axial_rotation(places, 8), device=torch.device("cpu"))
    assert groups.batches == [(1, 16), (9, 32), (20, 64)]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_training(autocast: bool) -> None:
    encoder = VisionEncoder(CONFIG)
    encoder.load_state_dict({name: weight.float() for name, weight in WEIGHTS.items()})
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tokens = encoder(PATCHES[: 2 * 10 * 12], torch.tensor([[2, 10, 12]]))
    tokens.float().square().mean().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name


def test_patches_must_fit_the_grids() -> None:
    for grids in ([[1, 6, 10]], [[1, 6, 8], [1, 2, 2]]):
        with pytest.raises(AssertionError, match="grid"):
            ENCODER(PATCHES[:48], torch.tensor(grids))
    with pytest.raises(AssertionError, match="merge"):
        ENCODER(PATCHES[:21], torch.tensor([[1, 3, 7]]))
