"""Pictures of the playroom: coloured shapes on a plain ground, out of a random generator.

Pixels are uint8 [H,W,3]; sizes and places are in pixels, angles in degrees. Pictures of the test
split keep to the page's renderings; those of the train split vary more (rough edges, noise, JPEG
artefacts, gradients, other kinds of crosses), so that a model does not depend on our drawing.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from thinktalk.playroom.talk import Split
from thinktalk.playroom.words import PLACES

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

COLOUR_VALUES = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "orange": (245, 140, 30),
    "purple": (140, 60, 180),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
ANY_COLOUR = "colour"
COLOUR_SPREAD = 18  # every channel, to both sides; the page allows 20
GROUND_DISTANCE = 55  # of the ground from every colour on it, in some channel; the page asks 50
LEAST_SIDE, MOST_SIDE = 112, 224
LEAST_SHARE, MOST_SHARE = 0.2, 0.5  # size of a single shape, of the shorter side
CLOSE_SIDE = 56  # of a picture of little else
CLOSE_SHARES, CLOSE_PLACED_SHARES = (0.4, 0.95), (0.3, 0.6)  # size of a shape there
TURN = 20  # a shape is rotated at most so much, to both sides
LEAST_COUNTED = 28  # counted shapes: the flattest, a triangle, is then at least 24 high
COUNTED_GAP = 4  # between the boxes of counted shapes
GRID_SHARE = 0.25  # of pictures whose counted shapes stand in rows
PLACE_CENTRES = {  # shares of width and height
    "left": (0.2, 0.5),
    "right": (0.8, 0.5),
    "top": (0.5, 0.2),
    "bottom": (0.5, 0.8),
    "middle": (0.5, 0.5),
}
PLACE_SPREAD = 0.09  # of the side; the page allows 0.1
MARGIN = 2  # between a shape and the border
SMOOTH = 4  # shapes are drawn so much larger and then made smaller: edges without steps


def shape_picture(
    rng: np.random.Generator,
    *,
    colour: str,
    shape: str,
    split: Split,
    close: bool = False,
) -> Pixels:
    """One shape somewhere. close: in a small picture, of which it fills much."""
    canvas, value = _canvas(rng, colour, side=(CLOSE_SIDE, CLOSE_SIDE) if close else None)
    height, width, _ = canvas.shape
    form = turned(outline(rng, shape, split=split), rng.uniform(-TURN, TURN))
    shares = CLOSE_SHARES if close else (LEAST_SHARE, MOST_SHARE)
    size = rng.uniform(*shares) * min(height, width)
    low, high = form.min(0) * size, form.max(0) * size
    while (room := np.array((width, height)) - (high - low) - 2 * MARGIN).min() < 0:
        size *= 0.95
        low, high = form.min(0) * size, form.max(0) * size
    centre = MARGIN - low + rng.random(2) * room
    paint(canvas, form, centre=centre, size=size, value=value, smooth=_smooth(rng, split))
    return finish(rng, canvas, split=split)


def counted_picture(
    rng: np.random.Generator, *, colour: str, shape: str, count: int, split: Split
) -> Pixels:
    """`count` shapes of one kind and colour that do not overlap."""
    return counted(rng, colour=colour, shape=shape, count=count, split=split)[0]


def counted(
    rng: np.random.Generator, *, colour: str, shape: str, count: int, split: Split
) -> tuple[Pixels, Floats]:
    """The same, and where the shapes' middles are: (x, y) [count,2]."""
    canvas, value = _canvas(rng, colour, side=_counting_side(rng, count))
    height, width, _ = canvas.shape
    corners = outline(rng, shape, split=split)
    forms = [turned(corners, rng.uniform(-TURN, TURN)) for _ in range(count)]
    if rng.random() < GRID_SHARE:
        placed = _in_rows(rng, forms, height=height, width=width)
    else:
        placed = _scattered(rng, forms, height=height, width=width)
    smooth = _smooth(rng, split)
    for form, (x, y, size) in zip(forms, placed, strict=True):
        paint(canvas, form, centre=(x, y), size=size, value=value, smooth=smooth)
    return finish(rng, canvas, split=split), np.array(placed)[:, :2]


def placed_picture(
    rng: np.random.Generator,
    *,
    colour: str,
    shape: str,
    place: str,
    split: Split,
    close: bool = False,
) -> Pixels:
    """One shape at one of the five places; close as above."""
    assert place in PLACES, place
    canvas, value = _canvas(rng, colour, side=(CLOSE_SIDE, CLOSE_SIDE) if close else None)
    shares = CLOSE_PLACED_SHARES if close else (LEAST_SHARE, MOST_SHARE)
    height, width, _ = canvas.shape
    form = turned(outline(rng, shape, split=split), rng.uniform(-TURN, TURN))
    beyond = 0.04 * min(height, width) if split == "train" and rng.random() < 0.2 else -MARGIN
    while True:
        size = rng.uniform(*shares) * min(height, width)
        share = np.array(PLACE_CENTRES[place]) + rng.uniform(-PLACE_SPREAD, PLACE_SPREAD, 2)
        centre = share * (width, height)
        low, high = centre + form.min(0) * size, centre + form.max(0) * size
        if (low >= -beyond).all() and (high <= np.array((width, height)) + beyond).all():
            break
    paint(canvas, form, centre=centre, size=size, value=value, smooth=_smooth(rng, split))
    return finish(rng, canvas, split=split)


# ---- colours


def colour_value(rng: np.random.Generator, colour: str) -> Floats:
    """A shade [3] in 0..255 of a colour, or of ANY_COLOUR: one that has no name here."""
    while colour == ANY_COLOUR:
        value = rng.uniform(0, 255, 3)
        if all(np.abs(value - named).max() >= GROUND_DISTANCE for named in COLOUR_VALUES.values()):
            return value
    spread = rng.uniform(-COLOUR_SPREAD, COLOUR_SPREAD, 3)
    return np.clip(np.array(COLOUR_VALUES[colour]) + spread, 0, 255)


def ground_value(rng: np.random.Generator, values: Sequence[Floats]) -> Floats:
    """A grey or pale tint [3] that every one of the colours stands out from."""
    while True:
        if rng.random() < 0.5:
            ground = np.full(3, rng.uniform(105, 235))
        else:
            ground = rng.uniform(215, 255) - rng.uniform(0, 48, 3)
        if all(np.abs(ground - value).max() >= GROUND_DISTANCE for value in values):
            return ground


def plain(ground: Floats, *, height: int, width: int) -> Pixels:
    """A canvas of one colour."""
    return np.tile(np.round(ground).astype(np.uint8), (height, width, 1))


def sides(rng: np.random.Generator, *, least: int = LEAST_SIDE) -> tuple[int, int]:
    """(height, width): square, or every second time any two sides."""
    height, width = (int(n) for n in rng.integers(least, MOST_SIDE + 1, 2))
    return (height, height) if rng.random() < 0.5 else (height, width)


# ---- shapes


def outline(rng: np.random.Generator, shape: str, *, split: Split) -> Floats:
    """The corners [n,2] (x to the right, y down) of a shape around (0, 0), larger extent 1.

    shape: its name, or "shape": one that has none.
    """
    corners = _CORNERS[shape](rng)
    if shape == "cross" and split == "train" and rng.random() < 0.12:
        corners = turned(corners, 45)  # some draw it as an x
    low, high = corners.min(0), corners.max(0)
    return (corners - (low + high) / 2) / (high - low).max()


def turned(corners: Floats, angle: float) -> Floats:
    """The corners rotated by so many degrees, the middle of their box at (0, 0) again."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    corners = corners @ np.array(((c, s), (-s, c)))
    return corners - (corners.min(0) + corners.max(0)) / 2


def _circle(rng: np.random.Generator) -> Floats:
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return np.stack((np.cos(angles), np.sin(angles)), 1)


def _square(rng: np.random.Generator) -> Floats:
    return np.array(((-1, -1), (1, -1), (1, 1), (-1, 1)), float)


def _triangle(rng: np.random.Generator) -> Floats:
    return np.array(((0, -rng.uniform(0.87, 1.0)), (0.5, 0), (-0.5, 0)), float)


def _star(rng: np.random.Generator) -> Floats:
    angles = np.pi * (np.arange(10) / 5 - 0.5)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.36, 0.46))
    return radius[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)


def _heart(rng: np.random.Generator) -> Floats:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack((16 * np.sin(t) ** 3, -y), 1)


def _cross(rng: np.random.Generator) -> Floats:
    a = rng.uniform(0.26, 0.4)  # half the width of an arm
    quarter = np.array(((a, -1), (a, -a), (1, -a)))
    turns = [np.linalg.matrix_power(np.array(((0, 1), (-1, 0))), k) for k in range(4)]
    return np.concatenate([quarter @ turn for turn in turns])


def _nameless(rng: np.random.Generator) -> Floats:
    """Three to eight corners around the middle, no two of them at one distance; or an oval."""
    if rng.random() < 0.2:
        return _circle(rng) * (1, rng.uniform(0.5, 0.75))
    count = int(rng.integers(3, 9))
    angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count
    radius = rng.uniform(0.5, 1.0, count)
    return radius[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)


_CORNERS = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "shape": _nameless,
}


def paint(
    canvas: Pixels,
    form: Floats,
    *,
    centre: Sequence[float] | Floats,
    size: float,
    value: Floats,
    smooth: bool = True,
) -> None:
    """Fills a shape on the canvas, in place; what lies beyond the canvas is cut off."""
    corners = form * size + np.asarray(centre)
    height, width, _ = canvas.shape
    left, top = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, (width, height))
    right, bottom = np.clip(np.ceil(corners.max(0)).astype(int) + 2, 0, (width, height))
    if right <= left or bottom <= top:
        return
    scale = SMOOTH if smooth else 1
    mask = Image.new("L", ((right - left) * scale, (bottom - top) * scale))
    # pixel centres lie at half units, where PIL counts them as whole
    points = ((corners - (left, top)) * scale - 0.5).ravel().tolist()
    ImageDraw.Draw(mask).polygon(points, fill=255)
    cover = np.asarray(mask.reduce(scale) if smooth else mask, np.float32)[..., None] / 255
    part = canvas[top:bottom, left:right]
    part[:] = np.round(part + cover * (value - part)).astype(np.uint8)


def finish(rng: np.random.Generator, canvas: Pixels, *, split: Split) -> Pixels:
    """What happens to pictures on their way: nothing (test), or some of it (train)."""
    if split == "test":
        return canvas
    height, width, _ = canvas.shape
    pixels = canvas.astype(np.float32)
    if rng.random() < 0.15:
        y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
        slope = rng.uniform(-12, 12, 2)
        pixels += (slope[0] * y + slope[1] * x)[..., None]
    if rng.random() < 0.2:
        pixels += rng.normal(0, rng.uniform(1, 5), pixels.shape)
    canvas = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        file = io.BytesIO()
        Image.fromarray(canvas).save(file, "JPEG", quality=int(rng.integers(60, 96)))
        canvas = np.asarray(Image.open(file), np.uint8)
    return canvas


# ---- places


def _canvas(
    rng: np.random.Generator,
    colour: str,
    *,
    side: tuple[int, int] | None = None,
) -> tuple[Pixels, Floats]:
    """An empty picture and the shade that will stand on it."""
    value = colour_value(rng, colour)
    height, width = side or sides(rng)
    return plain(ground_value(rng, [value]), height=height, width=width), value


def _smooth(rng: np.random.Generator, split: Split) -> bool:
    return split == "test" or rng.random() < 0.85


def _counting_side(rng: np.random.Generator, count: int) -> tuple[int, int]:
    """Sides on which so many shapes find room, even scattered."""
    needed = int((LEAST_COUNTED * 1.2 + COUNTED_GAP) / np.sqrt(0.45 / count))
    return sides(rng, least=max(LEAST_SIDE, needed))


def _counted_sizes(rng: np.random.Generator, count: int, *, area: float) -> Floats:
    """Sizes [count] that differ by at most a fifth and fill at most half of the area."""
    most = (np.sqrt(0.42 * area / count) - COUNTED_GAP) / 1.2
    most = min(most, MOST_SHARE * 0.9 * np.sqrt(area))
    base = rng.uniform(LEAST_COUNTED, max(most, LEAST_COUNTED + 1))
    return np.maximum(base * rng.uniform(0.9, 1.1, count), LEAST_COUNTED)


def _scattered(
    rng: np.random.Generator, forms: Sequence[Floats], *, height: int, width: int
) -> list[tuple[float, float, float]]:
    """(x, y, size) of every shape: anywhere, their boxes apart."""
    while True:
        sizes = _counted_sizes(rng, len(forms), area=height * width)
        placed: list[tuple[float, float, float]] = []
        boxes: list[Floats] = []
        for form, size in zip(forms, sizes, strict=True):
            half = form.max(0) * size
            for _ in range(60):
                centre = rng.uniform(half + MARGIN, np.array((width, height)) - half - MARGIN)
                box = np.concatenate((centre - half, centre + half))
                if all(_apart(box, other) for other in boxes):
                    boxes.append(box)
                    placed.append((float(centre[0]), float(centre[1]), float(size)))
                    break
            else:
                break
        if len(placed) == len(forms):
            return placed


def _apart(box: Floats, other: Floats) -> bool:
    """Whether two boxes (left, top, right, bottom) leave a gap."""
    gaps = np.concatenate((box[:2] - other[2:], other[:2] - box[2:]))
    return bool((gaps >= COUNTED_GAP).any())


def _in_rows(
    rng: np.random.Generator, forms: Sequence[Floats], *, height: int, width: int
) -> list[tuple[float, float, float]]:
    """(x, y, size) of every shape: in rows and columns, filled from the top left."""
    count = len(forms)
    most = [
        min(count, int(side // (LEAST_COUNTED * 1.3 + COUNTED_GAP))) for side in (width, height)
    ]
    fitting = [
        (columns, rows)
        for columns in range(1, most[0] + 1)
        for rows in [-(-count // columns)]
        if rows <= most[1]
    ]
    columns, rows = fitting[rng.integers(len(fitting))]
    cell = np.array((width / columns, height / rows))
    extent = max(float((form.max(0) - form.min(0)).max()) for form in forms)
    size = min((cell.min() - COUNTED_GAP - 1) / extent, MOST_SHARE * min(height, width))
    size = rng.uniform(LEAST_COUNTED, max(size, LEAST_COUNTED + 0.1))
    places = [((k % columns + 0.5) * cell[0], (k // columns + 0.5) * cell[1]) for k in range(count)]
    return [(float(x), float(y), float(size)) for x, y in places]
