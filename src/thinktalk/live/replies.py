"""The replies of one conversation: a wish in, text, sound and the end of the reply out as events.

Says when a reply begins, what its chosen ids mean, what stays of it in the conversation when it is
over, interrupted or truncated. Computes nothing with the network.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinktalk.config import OmniConfig
from thinktalk.live import api
from thinktalk.live.history import Composer, Item, Piece, heard_tokens
from thinktalk.live.memory import Memory
from thinktalk.live.speak import Reply
from thinktalk.media.chat import parse_tool_calls
from thinktalk.media.image import Processor
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.options import Settings
from thinktalk.weights import Voice

MS_PER_CODEC_ID = 20
MAX_WANTED = 16  # replies that wait for the one in progress
CHARS_PER_SECOND = 15.0  # of speech, until a reply's own pace is known
JUDGED_IDS = 4  # the first ids of a reply tell how complete the question was
SAMPLES_PER_MS = 24
SAMPLES_PER_S = 1000 * SAMPLES_PER_MS


@dataclass(frozen=True)
class Kit:
    """What all conversations of an engine share."""

    config: OmniConfig
    tokenizer: Tokenizer
    processor: Processor
    voices: dict[str, Voice]
    new_id: Callable[[str], str]

    def composer(self) -> Composer:
        return Composer(self.tokenizer, self.config.thinker_config)


@dataclass(frozen=True)
class Request:
    """A reply that is wanted. said: speak these words instead of thinking. speak: False for one
    that is only written."""

    response: str
    said: str | None = None
    speak: bool = True
    max_text_tokens: int | None = None
    max_codec_ids: int | None = None


class Replies:
    """hold: while it is a list, a reply's events are kept there, not sent: it is only tried.
    last: the reply that was over last, whose sound may still play."""

    def __init__(
        self,
        session: str,
        *,
        kit: Kit,
        memory: Memory,
        send: Callable[[api.Event], None],
        purge: Callable[[str], int],
        clock: Callable[[], float],
    ):
        """send: takes every event. purge: drops a response's sound that was sent but not yet
        taken, and tells how many samples that were. clock: seconds of sound that the session has
        received."""
        self.session, self.kit, self.memory = session, kit, memory
        self.current: Reply | None = None
        self.last: Reply | None = None
        self.wanted: deque[tuple[Request, Settings]] = deque()
        self.hold: list[tuple[type[api.Event], dict[str, Any]]] | None = None
        self.count = 0
        self.generation = 0
        self.send, self._purge, self._clock = send, purge, clock

    # ---- from a wish to its end

    def want(self, request: Request, settings: Settings) -> None:
        """Begins a reply now, or after the one in progress."""
        if self.current is None:
            self._begin(request, settings)
        elif len(self.wanted) < MAX_WANTED:
            self.wanted.append((request, settings))
        else:
            message = f"{MAX_WANTED} replies wait already; this one will not be given"
            self.tell(api.Failed, code="overloaded", message=message)

    def _begin(self, request: Request, settings: Settings) -> None:
        kit = self.kit
        composer = kit.composer()
        composer.begin("assistant")
        header = composer.take(whole=True)
        assert header is not None
        item = Item(kit.new_id("item"), "assistant", [header])
        self.memory.insert(item)
        self.memory.barrier = header
        self.memory.sync()
        ahead = takewhile(lambda piece: piece is not header, self.memory.queue)
        said = None if request.said is None else tuple(kit.tokenizer.encode(request.said))
        longest = request.max_text_tokens or settings.max_text_tokens
        self.current = Reply(
            response=request.response,
            item=item,
            settings=settings,
            seed=settings.seed + self.count,
            voice=kit.voices[settings.voice] if settings.speak and request.speak else None,
            decoder=kit.tokenizer.incremental_decoder(),
            max_text_tokens=longest if said is None else len(said) + 1,
            max_codec_ids=request.max_codec_ids or settings.max_codec_ids,
            said=said,
            num_uncached=sum(len(p.ids) for p in (*ahead, header)) - self.memory.done,
        )
        self.count += 1
        self._of_reply(api.ResponseStarted, response=request.response, item=item.id)

    def begin_thinking(self) -> None:
        """The prompt is in both caches: fixes where the reply stands."""
        reply, memory = self._reply, self.memory
        config = self.kit.config.thinker_config
        room = config.text_config.max_position_embeddings - memory.boundary
        reply.max_text_tokens = min(reply.max_text_tokens, max(1, room))
        reply.began, reply.start = True, memory.boundary
        reply.first_position = memory.track.next
        # the Talker's two start rows stand at the next positions
        reply.speech_position = max(memory.top, memory.track.next + 1) + 1
        ids = [i for mark in memory.past for i in mark.piece.ids]
        audio, image, video = (ids.count(token) for token in config.media_token_ids)
        reply.usage = api.Usage(
            input_text=len(ids) - audio - image - video,
            input_audio=audio,
            input_image=image + video,
            cached=max(0, len(ids) - reply.num_uncached),
        )

    def text_chosen(self, token: int, log_probability: float, of_stop: float) -> None:
        """The next text id, and the log-probabilities of it and of the stop id."""
        reply = self._reply
        if not reply.confidence:
            reply.silence = math.exp(of_stop)
        if len(reply.confidence) < JUDGED_IDS:
            reply.confidence.append(log_probability)
        if reply.choose_text(token, stop=self.kit.config.thinker_config.eos_token_id):
            text = reply.decoder.push(token)
            reply.spoken.push(text)
            self._text(text)
        if reply.sampled_all:
            reply.spoken.finish()
            self._text(reply.decoder.finish())

    def completeness(self) -> float | None:
        """How complete the model finds what it answers, 0 to 1; None until that is known.

        Then it is sure of its first words, and does not think of saying nothing, which is what it
        can be taught to answer to half a question.
        """
        reply = self._reply
        if not reply.confidence or not (len(reply.confidence) == JUDGED_IDS or reply.sampled_all):
            return None
        certainty = math.exp(sum(reply.confidence) / len(reply.confidence))
        return certainty * (1 - reply.silence)

    def sound(self, samples: NDArray[np.float32]) -> None:
        reply = self._reply
        if not len(samples):
            return
        reply.num_samples += len(samples)
        if reply.heard_from_s is None and self.hold is None:
            reply.heard_from_s = self._clock()
        self._of_reply(api.AudioDelta, response=reply.response, item=reply.item.id, samples=samples)

    def finish(self, status: api.Status = "completed", reason: api.Reason = "") -> None:
        """The reply is over: its words become part of the conversation."""
        reply, memory = self._reply, self.memory
        item = reply.item
        memory.keep_reply(reply)
        # what is known, but not in the caches
        item.pieces.append(self._closing(reply.text_ids[len(reply.rows) :]))
        item.text, num_words = reply.text, len(reply.text_ids)
        if reply.spoken.ended:
            num_words = reply.spoken.count
            # a call that was interrupted is none
            item.call_ids = () if status == "cancelled" else tuple(reply.text_ids[num_words:])
        item.text_ids = tuple(reply.text_ids[:num_words])
        item.audio_ms, item.was_spoken = reply.num_samples // SAMPLES_PER_MS, reply.speak
        if reply.codec_done and not reply.limited:
            item.speech_ms = len(reply.codec_ids) * MS_PER_CODEC_ID
        reply.ended, reply.rows = True, []
        self.current, memory.barrier = None, None
        self.last = reply if reply.speak else None
        memory.sync()
        if status in ("completed", "incomplete"):  # what is cut in a call is no call
            for call in parse_tool_calls(reply.text):
                self._of_reply(
                    api.ToolCall,
                    response=reply.response,
                    item=item.id,
                    call_id=self.kit.new_id("call"),
                    name=call.name,
                    arguments=call.arguments,
                )
        usage = replace(
            reply.usage, output_text=len(reply.text_ids), output_audio=len(reply.codec_ids)
        )
        self._of_reply(
            api.ResponseDone,
            response=reply.response,
            item=item.id,
            status=status,
            reason=reason,
            text=reply.text,
            audio_ms=item.audio_ms,
            usage=usage,
        )
        if self.wanted and self.hold is None:
            self._begin(*self.wanted.popleft())

    # ---- from an interruption to what was heard

    @property
    def is_heard(self) -> bool:
        """A reply is in progress, or its sound still plays."""
        last = self.last
        if self.current is not None or last is None or last.heard_from_s is None:
            return self.current is not None
        return last.heard_from_s + last.num_samples / SAMPLES_PER_S > self._clock()

    def interrupt(self, reason: api.Reason) -> None:
        """Stops the reply; the conversation ends it where the user can have heard it to. The
        caller has begun a new generation."""
        self.wanted.clear()
        if self.current is not None:
            self.current.num_samples -= self._purge(self.current.response)
            self.finish("cancelled", reason)
        elif self.last is not None:
            self.last.num_samples -= self._purge(self.last.response)
            self.last.item.audio_ms = self.last.num_samples // SAMPLES_PER_MS
        reply, self.last = self.last, None
        if reply is None or reply.item not in self.memory.items:
            return
        heard_ms = reply.item.audio_ms
        if reply.settings.turn_detection is not None:
            now_s = self._clock()
            since_s = 0.0 if reply.heard_from_s is None else now_s - reply.heard_from_s
            heard_ms = min(heard_ms, round(1000 * since_s))
        self.truncate(reply.item, heard_ms)
        self.memory.sync()

    def drop(self) -> None:
        """Throws a reply that was only tried away, without trace."""
        if self.current is not None:
            self.memory.abandon_reply()
            self.current.ended = True
        elif self.last is not None and self.last.heard_from_s is None:
            self.last = None
        self.current, self.memory.barrier, self.hold = None, None, None
        self.count -= 1

    def abandon(self) -> None:
        """Stops the reply without a word, in a conversation that ends."""
        self.wanted.clear()
        if self.current is not None:
            self.memory.abandon_reply()
            self.current.ended = True
        self.current = self.last = self.hold = None

    def truncate(self, item: Item, audio_ms: int) -> None:
        """Lets the conversation end a reply's words where so much of its sound had been heard; the
        memory must follow."""
        tokenizer = self.kit.tokenizer
        texts = [tokenizer.token_bytes(token) for token in item.text_ids]
        count = heard_tokens(item, audio_ms, texts=texts, chars_per_second=CHARS_PER_SECOND)
        piece = self._closing([*item.text_ids[:count], *item.call_ids])
        if [i for p in item.pieces[1:] for i in p.ids] != piece.ids:
            item.pieces[1:] = [piece]
        decoder = tokenizer.incremental_decoder()
        text = "".join(map(decoder.push, item.text_ids[:count]))
        self.tell(api.Truncated, item=item.id, audio_ms=audio_ms, text=text)

    def _closing(self, ids: Sequence[int]) -> Piece:
        """The last words of a reply, and its end."""
        composer = self.kit.composer()
        composer.end()
        return Piece([*ids, *composer.piece.ids], is_plain=True)

    # ---- events

    def tell(self, event: type[api.Event], **fields: Any) -> None:
        self.send(event(self.session, self.generation, **fields))

    def release(self) -> None:
        """Sends what was held: the reply counts."""
        held, self.hold = self.hold or [], None
        for event, fields in held:
            self.tell(event, **fields)
        reply = self.current or self.last
        if reply is not None and reply.num_samples and reply.heard_from_s is None:
            reply.heard_from_s = self._clock()

    def _of_reply(self, event: type[api.Event], **fields: Any) -> None:
        if self.hold is not None:
            self.hold.append((event, fields))
        else:
            self.tell(event, **fields)

    @property
    def _reply(self) -> Reply:
        assert self.current is not None, "there is no reply"
        return self.current

    def _text(self, piece: str) -> None:
        reply = self._reply
        if piece:
            reply.text += piece
            self._of_reply(api.TextDelta, response=reply.response, item=reply.item.id, text=piece)
