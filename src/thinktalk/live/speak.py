"""A reply in progress: what it has said, what its next steps need, and when a block is due.

The Thinker writes one id a tick; every id that is fed back leaves a row. The Talker's step k needs
row k, or to know that there is none: so both advance together, and nothing waits for the text to
end. Token2Wav renders a block once the block after it exists.
"""

from dataclasses import dataclass, field

from torch import Tensor

from thinktalk.live.api import Usage
from thinktalk.live.history import Item
from thinktalk.media.chat import SpokenIds
from thinktalk.media.tokenizer import IncrementalDecoder
from thinktalk.options import Settings
from thinktalk.weights import Voice


@dataclass
class Reply:
    """State of one reply. Ids on the host are known one tick after they were chosen at the latest.

    rows: state plus embedding [1,C] of every text id that was fed back. voice: None where nothing
    is spoken. slot: its row in the engine's buffers, from the first step to the end.
    """

    response: str
    item: Item
    settings: Settings
    seed: int
    voice: Voice | None
    decoder: IncrementalDecoder
    max_text_tokens: int
    max_codec_ids: int
    said: tuple[int, ...] | None = None  # the ids to speak, where the caller gave the words
    num_uncached: int = 0  # positions of the prompt that were not in the cache when it was wanted
    slot: int | None = None

    began: bool = False  # the prompt is in the caches:
    start: int = 0  # how long it is there
    first_position: int = 0  # of the reply's text
    speech_position: int = 0  # of the first codec id that is fed back
    usage: Usage = field(default_factory=Usage)

    text_ids: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)  # log-probability of the first ids
    silence: float = 0.0  # probability that the reply is empty
    to_feed: int | None = None
    sampled_all: bool = False
    rows: list[Tensor] = field(default_factory=list)
    text: str = ""
    spoken: SpokenIds = field(default_factory=SpokenIds)
    codec_ids: list[int] = field(default_factory=list)
    codec_began: bool = False
    codec_done: bool = False
    blocks: int = 0
    rendering: bool = False  # the next ones are being rendered
    renders_alone: bool = False  # a job that it shared with others has failed
    voice_done: bool = False
    num_samples: int = 0
    heard_from_s: float | None = None  # the session's clock when its first sound was sent
    limited: bool = False  # it was cut at a limit
    ended: bool = False

    @property
    def speak(self) -> bool:
        return self.voice is not None

    @property
    def text_done(self) -> bool:
        """Every row exists that will ever exist."""
        return self.sampled_all and self.to_feed is None

    @property
    def wants_thought(self) -> bool:
        return self.began and not self.text_done

    @property
    def num_spoken(self) -> int:
        """Rows that exist and are for the Talker: not those of a function call."""
        return min(len(self.rows), self.spoken.count)

    @property
    def wants_speech(self) -> bool:
        """The Talker's next step has all that it needs."""
        if not self.speak or self.codec_done or not self.num_spoken:
            return False
        if not self.codec_began:
            return True
        return self.num_spoken > len(self.codec_ids) or self.text_done or self.spoken.ended

    @property
    def over(self) -> bool:
        return self.text_done and (not self.speak or self.voice_done or not self.num_spoken)

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
        self.limited |= last and (self.said is None or step + 1 < len(self.said))
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
