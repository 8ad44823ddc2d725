"""A reply in progress: what it has said, what its next steps need, and when a block is due.

The Thinker writes one id a tick; every id that is fed back leaves a row. The Talker's step k needs
row k, or to know that there is none: so both advance together, and nothing waits for the text to
end. Token2Wav renders a block once the block after it exists.
"""

from dataclasses import dataclass, field

from torch import Tensor

from thinktalk.live.api import Event
from thinktalk.live.history import Item
from thinktalk.media.tokenizer import IncrementalDecoder
from thinktalk.weights import Voice


@dataclass
class Reply:
    """State of one reply. Ids on the host are known one tick after they were chosen at the latest.

    rows: state plus embedding [1,C] of every text id that was fed back. slot: its row in the
    engine's buffers. held: events of a reply that is only being tried; None once it counts.
    """

    response: str
    item: Item
    slot: int
    seed: int
    speak: bool
    voice: Voice | None
    decoder: IncrementalDecoder
    max_text_tokens: int
    max_codec_ids: int
    said: tuple[int, ...] | None = None  # the ids to speak, where the caller gave the words
    held: list[Event] | None = None
    start: int = 0  # positions of the prompt in the cache
    first_position: int = 0
    speech_position: int = 0
    input_counts: dict[str, int] = field(default_factory=dict)
    cached: int = 0

    began: bool = False
    text_ids: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)  # log-probability of the first ids
    to_feed: int | None = None
    sampled_all: bool = False
    rows: list[Tensor] = field(default_factory=list)
    text: str = ""
    codec_ids: list[int] = field(default_factory=list)
    codec_began: bool = False
    codec_done: bool = False
    blocks: int = 0
    voice_done: bool = False
    num_samples: int = 0
    heard_from_s: float | None = None  # the session's clock when its first sound was sent
    limited: bool = False

    @property
    def text_done(self) -> bool:
        """Every row exists that will ever exist."""
        return self.sampled_all and self.to_feed is None

    @property
    def wants_thought(self) -> bool:
        return self.began and not self.text_done

    @property
    def wants_speech(self) -> bool:
        """The Talker's next step has all that it needs."""
        if not self.speak or self.codec_done or not self.rows:
            return False
        if not self.codec_began:
            return True
        return len(self.rows) > len(self.codec_ids) or self.text_done

    @property
    def over(self) -> bool:
        return self.text_done and (not self.speak or self.voice_done)

    def choose_text(self, token: int, *, stop: int) -> bool:
        """Takes the next text id; False if it is the stop id.

        As in generate, the last id at the limit is not fed back, unless it is the only one.
        """
        if token == stop:
            self.sampled_all = True
            return False
        step = len(self.text_ids)
        self.text_ids.append(token)
        last = step + 1 == self.max_text_tokens
        self.limited |= last and self.said is None
        self.sampled_all = last
        self.to_feed = token if step == 0 or not last else None
        return True

    def choose_codec(self, token: int, *, stop_ids: tuple[int, ...]) -> None:
        self.codec_began = True
        if token in stop_ids:
            self.codec_done = True
            return
        self.codec_ids.append(token)
        if len(self.codec_ids) == self.max_codec_ids:
            self.codec_done = self.limited = True

    def settle(self) -> None:
        """Notes that no speech will come where there is nothing to say or to render any more."""
        if self.speak and self.text_done and not self.rows:
            self.codec_done = True
