"""Picture sizes, resizing and patches: bit for bit the reference's image processor."""

import hashlib
import json
from pathlib import Path

import media_samples as samples
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from thinktalk.media.image import (
    Processor,
    image_size,
    levels_of,
    normalise,
    patches,
    resize,
    target_size,
)

GOLDEN = load_file(Path(__file__).parent / "golden" / "media.safetensors")
PROCESSOR = Processor()


@pytest.mark.parametrize(("height", "width"), samples.PICTURES)
def test_equals_reference(height: int, width: int) -> None:
    out, grid = patches(samples.picture(height, width), processor=PROCESSOR)
    key = f"image.{height}x{width}"
    assert grid == tuple(GOLDEN[f"{key}.grid"].tolist())
    assert out.dtype == np.float32 and out.shape == (grid[1] * grid[2], 1176)
    np.testing.assert_array_equal(out[len(out) // 2], GOLDEN[f"{key}.row"])
    assert hashlib.sha256(out.tobytes()).digest() == GOLDEN[f"{key}.sha256"].tobytes()


@pytest.mark.reference
def test_equals_installed_reference() -> None:
    from reference import transformers

    theirs = transformers.Qwen2VLImageProcessor(
        min_pixels=PROCESSOR.min_pixels, max_pixels=PROCESSOR.max_pixels
    )
    rng = np.random.RandomState(7)
    for _ in range(40):
        image = samples.picture(*rng.randint(4, 700, 2).tolist(), seed=int(rng.randint(100)))
        out, grid = patches(image, processor=PROCESSOR)
        expected = theirs(images=[image], return_tensors="np", input_data_format="channels_last")
        assert [list(grid)] == expected["image_grid_thw"].tolist()
        np.testing.assert_array_equal(out, expected["pixel_values"])


def test_order_of_rows_and_values() -> None:
    """Each pixel carries its place: rows go by 2x2 blocks, values by channel, frame, y, x."""
    y, x = np.mgrid[:56, :84]
    image = np.stack([y, x, y * 0 + 200], -1).astype(np.uint8)
    out, grid = patches(image, processor=PROCESSOR)
    assert grid == (1, 4, 6)
    mean, std = (np.array(v) for v in (PROCESSOR.image_mean, PROCESSOR.image_std))
    rows = out.reshape(2, 3, 2, 2, 3, 2, 14, 14)  # block y, block x, y, x, channel, frame
    for block_y, block_x, down, across in ((0, 0, 1, 0), (1, 2, 0, 1)):
        top, left = 28 * block_y + 14 * down, 28 * block_x + 14 * across
        for frame in range(2):
            patch = rows[block_y, block_x, down, across, :, frame].transpose(1, 2, 0)
            pixels = (patch * std + mean) * 255
            expected = image[top : top + 14, left : left + 14]
            np.testing.assert_allclose(pixels, expected, atol=1e-3)


def test_levels_are_the_pixels_behind_patches() -> None:
    processor = Processor()
    taken, _ = patches(samples.picture(140, 196), processor=processor)
    levels = levels_of(taken, processor=processor)
    assert levels.dtype == np.uint8 and levels.shape == (len(taken), 3, 392)
    np.testing.assert_array_equal(normalise(levels, processor=processor), taken)
    every = np.tile((np.arange(280) % 256).astype(np.uint8)[None, :, None], (28, 1, 3))
    taken, _ = patches(every, processor=processor, size=(28, 280))
    back = normalise(levels_of(taken, processor=processor), processor=processor)
    np.testing.assert_array_equal(back, taken)


def test_pillow_is_close() -> None:
    """The official tools resize pictures with Pillow: two 8-bit passes of other precision."""
    image = samples.picture(270, 480)
    ours = resize(image, size=(280, 252)).astype(int)
    across = Image.fromarray(image).resize((252, 270), Image.Resampling.BICUBIC)
    theirs = np.asarray(across.resize((252, 280), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(ours - theirs).max() <= 2
    assert (ours != theirs).mean() < 0.01


def test_large_reduction_stays_exact() -> None:
    """Where float32 sums would not be exact: white stays white, and flat areas flat."""
    image = np.full((2000, 1500, 3), 255, np.uint8)
    image[:, :750] = 7
    small = resize(image, size=(28, 28))
    assert (small[:, -10:] == 255).all() and (small[:, :10] == 7).all()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((84, 112), (84, 112)),
        ((100, 100), (112, 112)),
        ((42, 70), (56, 56)),  # 1.5 and 2.5: Python rounds to even
        ((10, 10), (56, 56)),  # below the least area
        ((10000, 10000), (3556, 3556)),  # beyond the largest; a division just misses 128 cells
        ((2, 400), (28, 812)),
    ],
)
def test_target_size(before: tuple[int, int], after: tuple[int, int]) -> None:
    assert image_size(*before, processor=PROCESSOR) == after


def test_size_stays_within_limits() -> None:
    rng = np.random.RandomState(0)
    for _ in range(300):
        height, width = rng.randint(20, 3000, 2).tolist()
        h, w = target_size(height, width, cell=28, min_pixels=50_000, max_pixels=200_000)
        assert h % 28 == w % 28 == 0
        assert 50_000 <= h * w <= 200_000 or min(h, w) == 28


def test_narrow_pictures_are_refused() -> None:
    assert image_size(2, 400, processor=PROCESSOR) == (28, 812)
    with pytest.raises(ValueError, match=r"401 x 2 pixels is too narrow.*crop"):
        image_size(2, 401, processor=PROCESSOR)


def test_processor_reads_every_spelling(tmp_path: Path) -> None:
    official = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}
    new = {"size": {"shortest_edge": 3136, "longest_edge": 5000}, "crop_size": None}
    assert Processor.from_dict(official) == Processor()
    assert Processor.from_dict(new).max_pixels == 5000
    assert Processor.from_dict({"something": "else"}) == Processor()
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({"image_processor": new, "video_processor": {"size": {}}}))
    assert Processor.from_folder(tmp_path).max_pixels == 5000
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(official))
    assert Processor.from_folder(tmp_path).max_pixels == 12845056
    assert Processor.from_folder(tmp_path / "nowhere") == Processor()


def test_processor_survives_its_file() -> None:
    mine = Processor(max_pixels=28 * 28 * 9, video_max_pixels=28 * 28 * 4, video_fps=1.0)
    assert Processor.from_dict(json.loads(json.dumps(mine.to_dict()))) == mine


@pytest.mark.reference
def test_reference_reads_our_file(tmp_path: Path) -> None:
    from reference import transformers

    mine = Processor(max_pixels=28 * 28 * 9, video_max_pixels=28 * 28 * 4)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(mine.to_dict()))
    theirs = transformers.Qwen2VLImageProcessor.from_pretrained(tmp_path)
    assert theirs.size["longest_edge"] == mine.max_pixels
    theirs.save_pretrained(tmp_path)
    assert Processor.from_folder(tmp_path) == mine
