"""The playroom's pictures, measured from their pixels."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import fft, ndimage

from thinktalk.playroom import scenes, writing
from thinktalk.playroom.scenes import COLOUR_VALUES, Pixels
from thinktalk.playroom.talk import Split
from thinktalk.playroom.words import COLOURS, PLACES, SHAPES

# Share of its box that a shape fills when it is not turned (page: what the names mean).
FILLED = {
    "circle": (0.76, 0.8), "square": (0.99, 1.0), "triangle": (0.48, 0.52), "star": (0.25, 0.4),
    "heart": (0.6, 0.75), "cross": (0.4, 0.7),
}  # fmt: skip


def rng_of(*seed: int | str) -> np.random.Generator:
    return np.random.default_rng([s if isinstance(s, int) else len(s) for s in seed])


def spots(pixels: Pixels) -> tuple[np.ndarray, list[tuple[slice, slice]]]:
    """(mask of what differs from the ground, the box of every spot of at least 40 pixels)."""
    ground = np.median(np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])), 0)
    mask = np.abs(pixels.astype(int) - ground).max(-1) > 35
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    found = ndimage.find_objects(labels)
    sizes = [int((labels[box] == n + 1).sum()) for n, box in enumerate(found)]
    return mask, [box for box, size in zip(found, sizes, strict=True) if size >= 40]


def extents(box: tuple[slice, slice]) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def solid(mask: np.ndarray) -> np.ndarray:
    """The pixels well inside, where edges do not mix colours."""
    return ndimage.binary_erosion(mask, iterations=2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_one_shape_has_its_colour_and_size(colour: str, shape: str) -> None:
    pixels = scenes.shape_picture(
        rng_of(1, colour, shape), colour=colour, shape=shape, split="test"
    )
    height, width, _ = pixels.shape
    assert min(height, width) >= 112 and max(height, width) <= 224
    mask, boxes = spots(pixels)
    assert len(boxes) == 1
    # turned by 20 degrees, a square's box is 1.28 times its side
    assert 0.15 * min(height, width) < max(extents(boxes[0])) < 0.65 * min(height, width) + 2
    inside = pixels[solid(mask)].astype(int)
    off = np.abs(inside - np.array(COLOUR_VALUES[colour])).max(-1)
    assert (off <= 20).mean() > 0.98  # but for the notch of a heart
    ground = pixels[0, 0].astype(int)
    assert np.abs(ground - np.median(inside, 0)).max() >= 50


def test_shapes_without_a_name_are_no_two_alike() -> None:
    pictures = [
        scenes.shape_picture(rng_of(n), colour="red", shape="shape", split="train")
        for n in range(20)
    ]
    assert len({pixels.tobytes() for pixels in pictures}) == 20
    for count in range(1, 10):
        pixels = scenes.counted_picture(
            rng_of(count), colour="red", shape="shape", count=count, split="test"
        )
        assert len(spots(pixels)[1]) == count


def test_outlines_are_what_their_names_say() -> None:
    for shape in SHAPES:
        for number in range(20):
            x, y = scenes.outline(rng_of(number), shape, split="test").T
            area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
            box = (x.max() - x.min()) * (y.max() - y.min())
            least, most = FILLED[shape]
            assert least <= area / box <= most, (shape, area / box)
            assert max(x.max() - x.min(), y.max() - y.min()) == pytest.approx(1)
            assert min(x.max() - x.min(), y.max() - y.min()) > 0.85


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("count", range(1, 10))
def test_counted_shapes_are_as_many_and_apart(count: int, split: Split) -> None:
    for number, shape in enumerate(SHAPES):
        rng = rng_of(count, number, split)
        pixels = scenes.counted_picture(rng, colour="blue", shape=shape, count=count, split=split)
        _, boxes = spots(pixels)
        assert len(boxes) == count, (shape, number)
        assert min(min(extents(box)) for box in boxes) >= 23  # 24, less one faint edge pixel
        for k, one in enumerate(boxes):
            for other in boxes[:k]:
                pairs = zip(one, other, strict=True)
                assert any(a.start >= b.stop or b.start >= a.stop for a, b in pairs)


@pytest.mark.parametrize("place", PLACES)
def test_placed_shapes_stand_at_their_place(place: str) -> None:
    for number in range(12):
        shape = SHAPES[number % 6]
        rng = rng_of(number, place)
        pixels = scenes.placed_picture(rng, colour="red", shape=shape, place=place, split="test")
        (box,) = spots(pixels)[1]
        centre = [
            (b.start + b.stop) / 2 / side for b, side in zip(box, pixels.shape[:2], strict=True)
        ]
        wanted = {"left": (0.5, 0.2), "right": (0.5, 0.8), "top": (0.2, 0.5), "bottom": (0.8, 0.5)}
        assert np.abs(np.array(centre) - wanted.get(place, (0.5, 0.5))).max() <= 0.105


def test_pictures_repeat_and_vary() -> None:
    def draw(seed: int) -> Pixels:
        rng = rng_of(seed)
        return scenes.shape_picture(rng, colour="red", shape="star", split="train")

    assert np.array_equal(draw(3), draw(3)) and draw(3).shape != draw(4).shape


def test_only_training_draws_crosses_as_x() -> None:
    def diagonal(split: Split, number: int) -> bool:
        """Whether the arms reach into the corners of the box."""
        corners = scenes.outline(rng_of(number), "cross", split=split)
        return bool(np.abs(corners).min(1).max() > 0.205)

    assert not any(diagonal("test", n) for n in range(100))
    assert 3 < sum(diagonal("train", n) for n in range(100)) < 25


# ---- writing


def test_every_fifth_digit_is_for_tests() -> None:
    train, test = writing.digit_numbers("train"), writing.digit_numbers("test")
    assert test == tuple(range(0, 1797, 5)) and sorted((*train, *test)) == list(range(1797))
    counts = np.bincount([writing.digit_of(n) for n in test])
    assert len(counts) == 10 and counts.min() > 20


def test_digits_are_the_handwritten_ones() -> None:
    for number in (0, 15, 25, 80):
        pixels = writing.digit_picture(rng_of(number), number=number, split="test")
        assert min(pixels.shape[:2]) >= 112 and max(pixels.shape[:2]) <= 224
        grey = np.abs(pixels.astype(float) - pixels[0, 0]).sum(-1)
        ink = writing._digits()[0][number]
        rows, columns = np.flatnonzero(grey.sum(1) > 0), np.flatnonzero(grey.sum(0) > 0)
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 20 <= side <= 112
        assert _likeness(grey, ink) > 0.8, number


def _likeness(grey: np.ndarray, ink: np.ndarray) -> float:
    """Best correlation of the picture with the 8 x 8 original at any place and size."""
    best = 0.0
    for side in range(30, 113, 10):
        large = np.asarray(ndimage.zoom(ink, side / 8, order=1))
        large = large - large.mean()
        window = np.ones_like(large)
        sums = _slide(grey, window)
        spread = _slide(grey**2, window) - sums**2 / window.size
        match = _slide(grey, large) / np.sqrt(np.maximum(spread, 1e-6 * spread.max() + 1e-9))
        # a tile with its own paper differs from the ground inversely where the paper is white
        best = max(best, float(np.abs(match).max() / np.sqrt((large**2).sum())))
    return best


def _slide(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    sizes = zip(picture.shape, kernel.shape, strict=True)
    shape: list[int] = [int(fft.next_fast_len(a + b - 1) or 0) for a, b in sizes]
    spectrum = np.fft.rfft2(picture, shape) * np.fft.rfft2(kernel[::-1, ::-1], shape)
    full = np.fft.irfft2(spectrum, shape)
    a, b = kernel.shape
    return full[a - 1 : picture.shape[0], b - 1 : picture.shape[1]]


@pytest.mark.parametrize("split", ["train", "test"])
def test_smallest_words_are_readable(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MOST_FONT", 14)
    monkeypatch.setattr(writing, "finish", lambda rng, canvas, split: canvas)
    for number, word in enumerate(("lion", "weiß", "triangles", "o'clock", "löwe", "i")):
        pixels = writing.word_picture(rng_of(number, split), word=word, split=split)
        ground, grey = pixels[0, 0] @ writing.BRIGHTNESS, pixels @ writing.BRIGHTNESS
        assert np.abs(grey - ground).max() >= 60  # thin strokes lose some of the ink's 80
        marked = np.abs(grey - ground) > 15
        rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
        assert rows[0] > 0 and rows[-1] < len(pixels) - 1 and columns[0] > 0
        assert columns[-1] < pixels.shape[1] - 1 and np.ptp(rows) >= 7
        # letters are apart: about as many separate columns of ink as a word of so many has
        gaps = int((np.diff(marked.any(0).astype(int)) == 1).sum())
        assert gaps >= len(word) // 3


def test_long_words_are_made_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LEAST_FONT", 40)
    for number in range(6):
        pixels = writing.word_picture(rng_of(number), word="seventeen", split="test")
        assert pixels.shape[1] <= 224


def test_test_fonts_are_never_trained_on() -> None:
    assert not set(writing.TRAIN_FONTS) & set(writing.TEST_FONTS)
    assert not any(
        name.startswith(("DejaVuSerif", "LiberationMono")) for name in writing.TRAIN_FONTS
    )
    for name in (*writing.TRAIN_FONTS, *writing.TEST_FONTS):
        assert writing.font_file(name).name == name


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("LiberationMono-Regular.ttf", "fonts-liberation"), ("DejaVuSerif.ttf", "matplotlib")],
)
def test_missing_fonts_are_named(name: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "find_spec", lambda _: None)
    monkeypatch.setattr(writing, "FONT_FOLDERS", ())
    plain: Callable = writing.font_file.__wrapped__
    with pytest.raises(ValueError, match=f"{name} is missing.*{remedy}"):
        plain(name)
