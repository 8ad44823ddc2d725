"""The first stage of seeing: the vision encoder alone learns the words for what a picture shows.

As in align.py the text side stays frozen. Pictures are drawn anew for every batch: of 1 437
handwritten digits and some hundred words in a few fonts an encoder of this size knows nothing
until it has seen many renderings, and here one costs a tenth of what it costs with the decoder.
What single tokens shall see (spots.py) stands beside the names of the whole picture.
Shapes: n tokens of B pictures, V text tokens.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.media.image import Floats as Patches
from thinktalk.media.image import Grid, Processor, patches
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.media.video import video_patches
from thinktalk.model.thinker import Thinker
from thinktalk.playroom import cases, scenes, senses, talk, writing
from thinktalk.playroom.scenes import Floats, Pixels
from thinktalk.playroom.talk import Case, Split
from thinktalk.playroom.words import NUMBERS
from thinktalk.train.losses import side_by_side
from thinktalk.train.spots import NAMES, Spots, letters_in, nothing, things_in
from thinktalk.train.trainer import Task, to_device


@dataclass(frozen=True)
class Look:
    """Which pictures a stage draws: shares of tasks; how many letters of a word may be shown, and
    how often not all are; fonts from so many pixels on."""

    shares: dict[str, float]
    pieces: tuple[int, ...]
    piece_share: float
    least_font: int = writing.LEAST_FONT


# "where" also brings together the colours and shapes that no picture of "shape" does. Its place is
# worth learning here: though positions are relative, how much of the attention finds nothing on one
# side tells how near an edge is, and a decoder that has to work out places by itself from the
# positions of tokens took hours without beginning to. What moves is seen in two frames, as one pair
# of a film holds them.
EVERYTHING = Look(
    {"shape": 0.1, "where": 0.14, "digit": 0.12, "how many": 0.14, "motion": 0.14, "read": 0.36},
    pieces=(1, 2, 3),
    piece_share=0.3,
)
# An encoder that was shown whole words in all sizes at once had not told one letter from another
# after hours; shown single large letters it does within minutes.
LETTERS_FIRST = Look(
    {"shape": 0.1, "where": 0.12, "digit": 0.1, "how many": 0.12, "motion": 0.14, "read": 0.42},
    pieces=(1, 1, 1, 2),
    piece_share=0.9,
    least_font=18,
)
# Most pictures of one thing are small: what fills four tokens costs a tenth of what lies somewhere
# among forty. The others teach it to put together what lies in several windows of the encoder.
CLOSE_SHARE = 0.7
# What is held out are pairs of colour and shape: a shade without a name has no partner.
ANY_COLOUR_SHARE = 0.25
STILL = "stays still"
SPOTS_WEIGHT = 1.0
NUM_TEST_PICTURES = 48  # of every task


class SeeingTask(Task):
    """A picture's tokens shall name what it shows: the words of a short description.

    The score of a word is that of the token that says it most clearly, as a product with the
    Thinker's frozen embedding of the word, so that what is seen comes to lie where its name lies.
    The loss asks for each word of the description among all words, in no order. (CTC, which taught
    the ear, stays at its blank here: a picture is not read from left to right.) Of counted things
    and of writing each token shall tell, too, what lies in its own square.
    """

    def __init__(
        self,
        thinker: Thinker,
        tokenizer: Tokenizer,
        processor: Processor,
        look: Look = EVERYTHING,
    ):
        thinker.requires_grad_(False)
        thinker.visual.requires_grad_(True)
        self.spots = Spots(thinker.config.text_config.hidden_size)
        self.module = nn.ModuleDict({"thinker": thinker, "spots": self.spots})
        self.thinker, self.tokenizer, self.processor = thinker, tokenizer, processor
        self.look = look

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        shares = self.look.shares
        drawn = rng.choice(list(shares), size=size, p=list(shares.values()))
        return self._pictures(rng, [str(task) for task in drawn], "train")

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self._tokens(batch)
        names = self._scores(tokens, batch).log_softmax(-1)
        figures = {"words": -names[batch["pictures"], batch["words"]].mean()}
        figures |= self.spots.losses(tokens, batch)
        loss = figures["words"] + SPOTS_WEIGHT * (figures["things"] + figures["letters"])
        return loss, figures

    def weight(self, batch: dict[str, Any]) -> float:
        return len(batch["words"])

    def evaluate(self) -> dict[str, float]:
        """The share of held-out pictures of every task whose words, and no others, are named."""
        device, figures = self.thinker.lm_head.weight.device, {}
        for number, task in enumerate(self.look.shares):
            rng = np.random.default_rng(number)
            batch = to_device(self._pictures(rng, [task] * NUM_TEST_PICTURES, "test"), device)
            scores = self._scores(self._tokens(batch), batch)
            least = scores.new_full((len(scores),), math.inf)
            wanted = scores[batch["pictures"], batch["words"]]
            least = least.scatter_reduce(0, batch["pictures"], wanted, "amin")
            scores[batch["pictures"], batch["words"]] = -math.inf
            figures[task.replace(" ", "_")] = (least > scores.amax(-1)).float().mean().item()
        return figures

    def _tokens(self, batch: dict[str, Any]) -> Tensor:
        """[n,C]"""
        return self.thinker.visual(batch["patches"], batch["grids"].cpu())

    def _scores(self, tokens: Tensor, batch: dict[str, Any]) -> Tensor:
        """How clearly each picture says each text token: [B,V]."""
        grids, table = batch["grids"].cpu(), self.thinker.model.embed_tokens.weight
        each = F.linear(tokens, table).float() * table.shape[1] ** -0.5  # [n,V]
        counts = grids.prod(-1) // self.thinker.config.vision_config.spatial_merge_size**2
        all_of_one = side_by_side(each, counts, fill=-math.inf)  # [longest,B,V]
        return all_of_one.logsumexp(0) - counts.to(each.device)[:, None].log()

    def _pictures(self, rng: np.random.Generator, tasks: list[str], split: Split) -> dict[str, Any]:
        asked = [senses.sample(rng, split=split, task=task) for task in tasks]
        if split == "train":
            asked = [_alone(rng, case, self.look) for case in asked]
        drawn = [
            _frames(rng, case, split, look=self.look, rate=self.processor.video_fps)
            for case in asked
        ]
        seen = [self._cut(frames) for frames, _ in drawn]
        spots = [
            self._spots(case, frames, middles, grid)
            for case, (frames, middles), (_, grid) in zip(asked, drawn, seen, strict=True)
        ]
        words = [[i for name in named(case) for i in self.tokenizer.encode(name)] for case in asked]
        return {
            "patches": torch.from_numpy(np.concatenate([each for each, _ in seen])),
            "grids": torch.tensor([grid for _, grid in seen]),
            "words": torch.tensor([word for each in words for word in each], dtype=torch.long),
            "pictures": torch.tensor([n for n, each in enumerate(words) for _ in each]),
            **{name: torch.cat([each[name] for each in spots]) for name in NAMES},
        }

    def _cut(self, frames: Pixels) -> tuple[Patches, Grid]:
        """The patches of a picture [1,H,W,3], or of a pair of frames."""
        if len(frames) > 1:
            return video_patches(frames, processor=self.processor)
        return patches(frames[0], processor=self.processor)

    def _spots(
        self, case: Case, frames: Pixels, middles: Floats | None, grid: Grid
    ) -> dict[str, Tensor]:
        """What the tokens of a picture shall see, where that is known."""
        spots = nothing(grid, self.processor)
        size = (frames.shape[1], frames.shape[2])
        if middles is None:
            return spots
        if case.task == "how many":
            return spots | {"things": things_in(middles, size, grid, self.processor)}
        word = case.shown[0]
        if len(middles) > len(word):
            word = word.replace("ß", "ss")
        return spots | {"letters": letters_in(word, middles, size, grid, self.processor)}


def _alone(rng: np.random.Generator, case: Case, look: Look) -> Case:
    """The case, or less of it to name: things are easier to tell apart where they stand alone."""
    match case.task, case.shown:
        case "read", (word,) if rng.random() < look.piece_share:
            start = rng.integers(len(word))
            return replace(case, shown=(word[start : start + rng.choice(look.pieces)],))
        case "shape" | "where" | "how many" | "motion", (_, shape, *rest) if (
            shape != senses.ANY_SHAPE and rng.random() < ANY_COLOUR_SHARE
        ):
            return replace(case, shown=(scenes.ANY_COLOUR, shape, *rest))
    return case


def _frames(
    rng: np.random.Generator, case: Case, split: Split, *, look: Look, rate: float
) -> tuple[Pixels, Floats | None]:
    """uint8 [1,H,W,3], or [2,H,W,3] of the middle of a film, where nothing pauses; and the middles
    of counted things or of letters, (x, y) [k,2].

    rate: at how many frames per second films are read, as far as they have them.
    """
    close = split == "train" and rng.random() < CLOSE_SHARE
    match case.task, case.shown:
        case "how many", (colour, shape, number):
            count = NUMBERS.index(number)
            picture, middles = scenes.counted(
                rng, colour=colour, shape=shape, count=count, split=split
            )
            return picture[None], middles
        case "read", (word,):
            least = look.least_font if split == "train" else writing.LEAST_FONT
            picture, middles = writing.written(
                rng, word=word, split=split, close=close, least_font=least
            )
            return picture[None], middles
        case "motion", _:
            return _two_frames(rng, case, split, rate=rate), None
        case "shape", (colour, shape) if close:
            picture = scenes.shape_picture(rng, colour=colour, shape=shape, split=split, close=True)
        case "where", (colour, shape, place) if close:
            picture = scenes.placed_picture(
                rng, colour=colour, shape=shape, place=place, split=split, close=True
            )
        case "digit", (number,) if close:
            picture = writing.digit_picture(rng, number=int(number), split=split, close=True)
        case _:
            picture = cases.picture(rng, case, split)
    return picture[None], None


def _two_frames(rng: np.random.Generator, case: Case, split: Split, *, rate: float) -> Pixels:
    film = cases.film(rng, case, split)
    step = max(round(film.fps / rate), 1)
    first, behind = (math.ceil(0.2 * len(film.frames)), math.floor(0.8 * len(film.frames)))
    start = int(rng.integers(first, max(behind - step, first) + 1))
    return film.frames[[start, start + step]]


def named(case: Case) -> list[str]:
    """What a picture shows: words, spelled as inside a sentence; none for a piece of a word.

    What stays still looks like a picture, and pictures are not called still.
    """
    match case.task, case.shown:
        case "read", (word,) if word not in talk.vocabulary():
            words = []
        case "digit", (number,):
            words = [NUMBERS[writing.digit_of(int(number))]]
        case "how many", (colour, shape, number):
            words = [number, colour, shape if number == NUMBERS[1] else senses.plural(shape)]
        case "motion", (*shown, motion):
            words = [*shown, *(() if motion == STILL else motion.split())]
        case _, shown:
            words = list(shown)
    return [f" {word}" for word in words if word != scenes.ANY_COLOUR]
