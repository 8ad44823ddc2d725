"""Written pictures of the playroom: handwritten digits and printed words; uint8 [H,W,3].

The digits are scikit-learn's bundled set, real handwriting of 8 x 8 pixels; every fifth one is for
tests. The fonts are those that matplotlib brings (DejaVu, STIX, Computer Modern) and Liberation,
from the system; DejaVu Serif and Liberation Mono are for tests.
"""

from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

from thinktalk.playroom.scenes import (
    CLOSE_SIDE,
    MOST_SIDE,
    Floats,
    Pixels,
    colour_value,
    finish,
    ground_value,
    plain,
    sides,
)
from thinktalk.playroom.talk import Split
from thinktalk.playroom.words import COLOURS

TEST_EVERY = 5  # digits whose index is a multiple of it are for tests
LEAST_DIGIT, MOST_DIGIT = 28, 112  # pixels a side
LEAST_FONT, MOST_FONT = 14, 40  # pixels
BRIGHTNESS = np.array((0.299, 0.587, 0.114))
LEAST_CONTRAST = 80  # difference in brightness of ink and ground

TRAIN_FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf", "cmr10.ttf", "cmb10.ttf", "cmss10.ttf", "cmtt10.ttf",
    "LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf", "LiberationSans-Italic.ttf",
    "LiberationSerif-Regular.ttf", "LiberationSerif-Bold.ttf", "LiberationSerif-Italic.ttf",
)  # fmt: skip
TEST_FONTS = (
    "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf",
    "LiberationMono-Regular.ttf", "LiberationMono-Bold.ttf",
)  # fmt: skip
FONT_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
    "/Library/Fonts", "~/Library/Fonts",
)  # fmt: skip


# ---- digits


def digit_numbers(split: Split) -> tuple[int, ...]:
    """The numbers of the split's handwritten digits within scikit-learn's set."""
    every = range(len(_digits()[1]))
    return tuple(n for n in every if (n % TEST_EVERY == 0) == (split == "test"))


def digit_of(number: int) -> int:
    """What the handwritten digit of a number means: 0 to 9."""
    return int(_digits()[1][number])


def digit_picture(
    rng: np.random.Generator, *, number: int, split: Split, close: bool = False
) -> Pixels:
    """One handwritten digit on a plain ground: ink alone, or with the paper it was written on.
    close: in a small picture."""
    ink = Image.fromarray(np.round(_digits()[0][number] * (255 / 16)).astype(np.uint8))
    side = round(rng.uniform(LEAST_DIGIT, CLOSE_SIDE if close else MOST_DIGIT))
    resample = rng.choice([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
    ink = ink.resize((side, side), Image.Resampling(int(resample)))
    if split == "train":
        ink = _written_differently(rng, ink)
    cover = np.asarray(ink, np.float32)[..., None] / 255
    height, width = (CLOSE_SIDE, CLOSE_SIDE) if close else sides(rng)
    value, ground = _ink_and_ground(rng)
    canvas = plain(ground, height=height, width=width)
    top, left = (int(rng.integers(0, n - side + 1)) for n in (height, width))
    part = canvas[top : top + side, left : left + side]
    paper: Floats | Pixels = part
    if rng.random() < 0.35:
        value, paper = (np.full(3, n) for n in ((255.0, 0.0) if rng.random() < 0.6 else (0, 255)))
    part[:] = np.round(paper + cover * (value - paper)).astype(np.uint8)
    return finish(rng, canvas, split=split)


def _written_differently(rng: np.random.Generator, ink: Image.Image) -> Image.Image:
    """Turned, slanted, stretched a little: 1 437 examples are few."""
    side = ink.width
    angle, slant = np.radians(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    scale = rng.uniform(0.97, 1.2, 2)  # above 1 it shrinks
    matrix = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    matrix = matrix @ np.array(((1, slant), (0, 1))) * scale
    shift = side / 2 - matrix @ np.full(2, side / 2) + rng.uniform(-0.04, 0.04, 2) * side
    data = (*matrix[0], shift[0], *matrix[1], shift[1])
    return ink.transform(ink.size, Image.Transform.AFFINE, data, resample=Image.Resampling.BILINEAR)


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(ink [1797,8,8] in 0..16, digit [1797])."""
    ink, digits = load_digits(return_X_y=True)
    return np.asarray(ink).reshape(-1, 8, 8), np.asarray(digits)


# ---- words


def word_picture(
    rng: np.random.Generator, *, word: str, split: Split, close: bool = False
) -> Pixels:
    """One printed word; in the split's fonts. close: little around it."""
    return written(rng, word=word, split=split, close=close, least_font=LEAST_FONT)[0]


def written(
    rng: np.random.Generator,
    *,
    word: str,
    split: Split,
    close: bool = False,
    least_font: int,
) -> tuple[Pixels, Floats]:
    """The same in fonts from so many pixels on, and where the letters' middles are: (x, y)
    [letters,2], those of `word` or, where it is in capitals and an ß became two, one more."""
    names = TEST_FONTS if split == "test" else TRAIN_FONTS
    if not word.isascii():
        names = tuple(name for name in names if not name.startswith("cm"))  # they lack ä ö ü ß
    name = names[rng.integers(len(names))]
    if split == "train" and rng.random() < 0.25:
        word = word.upper().replace("ẞ", "SS") if rng.random() < 0.5 else word.capitalize()
    height, width = sides(rng)
    size = int(rng.integers(least_font, MOST_FONT + 1))
    while (box := _font(name, size).getbbox(word))[2] - box[0] > MOST_SIDE - 8:
        size -= 1
    left, top, right, bottom = (round(n) for n in box)
    if close:
        height, width = (max(CLOSE_SIDE, n + 16) for n in (bottom - top, right - left))
    width = max(width, right - left + 8)
    value, ground = _ink_and_ground(rng)
    if split == "train" and rng.random() < 0.15:
        value, ground = ground, value
    canvas = Image.fromarray(plain(ground, height=height, width=width))
    x = int(rng.integers(4, width - (right - left) - 4 + 1)) - left
    y = int(rng.integers(4, height - (bottom - top) - 4 + 1)) - top
    ink = tuple(round(float(n)) for n in value)
    ImageDraw.Draw(canvas).text((x, y), word, fill=ink, font=_font(name, size))
    middle = (x + (left + right) / 2, y + (top + bottom) / 2)
    ends = [_font(name, size).getlength(word[:n]) for n in range(len(word) + 1)]
    letters = np.array([(x + (a + b) / 2, middle[1]) for a, b in pairwise(ends)])
    if split == "train" and rng.random() < 0.3:
        angle, paper = rng.uniform(-4, 4), tuple(round(float(n)) for n in ground)
        canvas = canvas.rotate(angle, Image.Resampling.BILINEAR, center=middle, fillcolor=paper)
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        letters = (letters - middle) @ np.array(((c, -s), (s, c))) + middle
    return finish(rng, np.array(canvas), split=split), letters


def _ink_and_ground(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Two values [3] that differ clearly in brightness: mostly black, sometimes another colour."""
    while True:
        value = colour_value(rng, "black" if rng.random() < 0.6 else str(rng.choice(COLOURS)))
        ground = ground_value(rng, [value])
        if abs(BRIGHTNESS @ (value - ground)) >= LEAST_CONTRAST:
            return value, ground


@lru_cache(maxsize=512)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(name), size)


@lru_cache(maxsize=64)
def font_file(name: str) -> Path:
    """Where a font of this file name is. Raises ValueError if it is not installed."""
    folders = [Path(folder).expanduser() for folder in FONT_FOLDERS]
    matplotlib = find_spec("matplotlib")
    if matplotlib and matplotlib.origin:
        folders.insert(0, Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf")
    for folder in folders:
        for path in sorted(folder.rglob(name)):
            return path
    remedy = "pip install matplotlib"
    if name.startswith("Liberation"):
        remedy = "Debian/Ubuntu: apt-get install fonts-liberation"
    raise ValueError(f"the font {name} is missing: install it ({remedy})")
