"""A conversation as pieces of prompt: words, sound and pictures in, ids with their features out.

A piece is a stretch of the prompt that enters the caches as one; an item (a turn, a reply, a system
prompt) is a list of pieces. The composer writes what the chat template would write, but as it
arrives: words wait until what follows them is known, because tokens may reach across their border.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from thinktalk.config import ThinkerConfig
from thinktalk.media.prompt import Prompt
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.model.audio import num_tokens
from thinktalk.model.tmrope import Track, extend_positions, line

Grid = tuple[int, int, int]


@dataclass(eq=False)
class Piece:
    """T ids and what their placeholders stand for; C: width of the Thinker.

    clips: (grid, seconds per pair) of the videos that begin here; continues: the same of one that
    began before, should its beginning be forgotten. features: rows [n,C] of the audio, image and
    video placeholders; until they exist, mels and patches are kept. is_plain: ids that the model
    chose, which stand for nothing but themselves, whatever they are.
    """

    ids: list[int]
    mels: list[Tensor] = field(default_factory=list)  # [128,F]
    images: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # patches [P,1176], grid [3]
    videos: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    clips: list[tuple[Grid, float]] = field(default_factory=list)
    continues: tuple[Grid, float] | None = None
    image_grids: list[Grid] = field(default_factory=list)
    is_plain: bool = False
    features: tuple[Tensor | None, Tensor | None, Tensor | None] | None = None

    @classmethod
    def of(cls, prompt: Prompt) -> "Piece":
        return cls(
            prompt.ids.tolist(),
            mels=[torch.from_numpy(mel) for mel in prompt.mels],
            images=[(torch.from_numpy(p), torch.tensor(grid)) for p, grid in prompt.images],
            videos=[(torch.from_numpy(p), torch.tensor(grid)) for p, grid, _ in prompt.videos],
            clips=[(grid, seconds) for _, grid, seconds in prompt.videos],
            image_grids=[grid for _, grid in prompt.images],
        )

    @property
    def ready(self) -> bool:
        return self.features is not None or not (self.mels or self.images or self.videos)

    def keep_features(self, features: tuple[Tensor | None, Tensor | None, Tensor | None]) -> None:
        """Takes the encoders' outputs in place of what they were computed from."""
        self.features = features
        self.mels, self.images, self.videos = [], [], []

    def positions(self, track: Track, config: ThinkerConfig) -> tuple[Tensor, Track]:
        """int64 [3,T] behind a row that has come to `track`, and the track behind the piece."""
        if self.is_plain:
            end = track.next + len(self.ids)
            return line(track.next, len(self.ids)), Track(next=end, base=end)
        lost = self.continues is not None and track.frame is None
        clips = [self.continues, *self.clips] if self.continues and lost else self.clips
        return extend_positions(
            torch.tensor(self.ids),
            track=track,
            config=config,
            image_grids=self.image_grids,
            video_grids=[grid for grid, _ in clips],
            seconds_per_pair=[seconds for _, seconds in clips],
        )

    def part(self, start: int, stop: int, config: ThinkerConfig) -> tuple[Tensor, list]:
        """ids int64 [stop - start], and their rows of the audio, image and video features."""
        features = self.features or (None, None, None)
        rows: list[Tensor | None] = []
        for token, values in zip(config.media_token_ids, features, strict=True):
            first = self.ids[:start].count(token)
            count = self.ids[start:stop].count(token)
            rows.append(values[first : first + count] if values is not None and count else None)
        return torch.tensor(self.ids[start:stop]), rows


@dataclass(eq=False)
class Item:
    """One message of the conversation. is_open: it still grows. text: what of a reply was
    made, whether or not it was heard; text_ids, call_ids: its words, and the function calls behind
    them, which nobody hears; audio_ms: how much of its sound was sent, of speech_ms if
    that is known."""

    id: str
    role: str
    pieces: list[Piece] = field(default_factory=list)
    is_open: bool = False
    text: str = ""
    text_ids: tuple[int, ...] = ()
    call_ids: tuple[int, ...] = ()
    audio_ms: int = 0
    was_spoken: bool = False
    speech_ms: int | None = None

    @property
    def num_ids(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces)


@dataclass(frozen=True)
class Mark:
    """A piece that is in the caches: where it begins, and how far positions had come there."""

    piece: Piece
    start: int
    track: Track
    top: int  # the largest position so far


class Composer:
    """Writes the open item: `take` gives what is certain so far as a piece."""

    def __init__(self, tokenizer: Tokenizer, config: ThinkerConfig):
        self.tokenizer, self.config = tokenizer, config
        self.words = ""
        self.piece = Piece([])
        # "sound", or of a film: rows, columns, seconds per pair
        self.open: str | tuple[int, int, float] | None = None

    def copy(self) -> "Composer":
        twin = Composer(self.tokenizer, self.config)
        twin.words, twin.open = self.words, self.open
        twin.piece = Piece(list(self.piece.ids), list(self.piece.mels))
        _append(twin.piece, self.piece, ids=False)
        return twin

    def begin(self, role: str) -> None:
        self.control("<|im_start|>")
        self.words = f"{role}\n"

    def end(self) -> None:
        """The end of the item; what follows always begins with a control token."""
        self.close()
        self.control("<|im_end|>")
        self.words = "\n"
        self._flush()

    def text(self, text: str) -> None:
        self.close()
        self.words += text

    def control(self, name: str) -> None:
        self._flush()
        self.piece.ids.append(self.tokenizer.id_of(name))

    def add(self, prompt: Prompt) -> None:
        """A medium with its markers, or whole messages: anything that begins and ends in them."""
        self.close()
        self._flush()
        _append(self.piece, Piece.of(prompt))

    def hear(self, mel: Tensor) -> None:
        """A window [128,F] of the microphone."""
        if self.open != "sound":
            self.close()
            self.control("<|audio_bos|>")
            self.open = "sound"
        self._sound(mel)

    def watch(self, patches: Tensor, grid: Grid, *, seconds_per_pair: float, mel: Tensor) -> None:
        """A window of the microphone with the camera's frames of the same time, as a video with
        sound whose end is not known yet."""
        if self.open == (*grid[1:], seconds_per_pair):
            self.piece.continues = grid, seconds_per_pair
        else:
            self.close()
            self.control("<|vision_bos|>")
            self.control("<|audio_bos|>")
            self.open = (grid[1], grid[2], seconds_per_pair)
            self.piece.clips.append((grid, seconds_per_pair))
        cells = grid[0] * grid[1] * grid[2] // self.config.vision_config.spatial_merge_size**2
        self.piece.ids += [self.config.video_token_index] * cells
        self.piece.videos.append((patches, torch.tensor(grid)))
        self._sound(mel)

    def close(self) -> None:
        """The end of the open sound or film."""
        if self.open is None:
            return
        film = self.open != "sound"
        self.open = None
        self.control("<|audio_eos|>")
        if film:
            self.control("<|vision_eos|>")

    def take(self, *, whole: bool = False) -> Piece | None:
        """All that later input cannot change any more, or whole: all; None if that is nothing."""
        if whole:
            self._flush()
        if not self.piece.ids:
            return None
        piece, self.piece = self.piece, Piece([])
        return piece

    def _sound(self, mel: Tensor) -> None:
        self.piece.ids += [self.config.audio_token_index] * num_tokens(mel.shape[1])
        self.piece.mels.append(mel)

    def _flush(self) -> None:
        if self.words:
            self.piece.ids += self.tokenizer.encode(self.words)
            self.words = ""


def _append(piece: Piece, more: Piece, *, ids: bool = True) -> None:
    if ids:
        piece.ids += more.ids
        piece.mels += more.mels
    piece.images += more.images
    piece.videos += more.videos
    piece.clips += more.clips
    piece.image_grids += more.image_grids
    piece.continues = piece.continues or more.continues


def flat(items: Sequence[Item]) -> Iterator[Piece]:
    for item in items:
        yield from item.pieces


def heard_tokens(
    item: Item, audio_ms: int, *, texts: Sequence[bytes], chars_per_second: float
) -> int:
    """How many of a reply's words' ids had been heard after so much of its sound: whole words.

    Sound and text of a reply are not aligned; once all of the speech is known, text is taken to
    pass evenly over it, before that at `chars_per_second`. texts: the bytes of every text id.
    """
    total = sum(map(len, texts))
    if item.speech_ms:
        heard = total * min(1.0, audio_ms / item.speech_ms)
    else:
        heard = min(total, audio_ms / 1000 * chars_per_second)
    ends = list(accumulate(map(len, texts)))
    count = sum(end <= heard + 1e-9 for end in ends)
    while 0 < count < len(texts) and texts[count][:1].isalnum():
        count -= 1  # the next token goes on with this word
    return count
