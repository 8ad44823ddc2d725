"""One conversation: signals of the ear and the caller's commands in, items and replies out.

Decides what shall stand in the caches and when a reply begins, counts, or is thrown away. Computes
nothing with the network; only the engine's thread calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinktalk.live import api
from thinktalk.live.draft import Content, Draft, Undo
from thinktalk.live.history import Item, Piece
from thinktalk.live.listen import Began, Ended, Heard, Listener, Paused, Signal, WentOn
from thinktalk.live.memory import Memory
from thinktalk.live.replies import Kit, Replies, Request
from thinktalk.media.prompt import Prompt
from thinktalk.options import SemanticVad, Settings

CONTEXT_SHARE, KEPT_SHARE = 0.85, 0.5  # of the context: where old turns go, and what stays
MIN_REPLY = 64  # positions that a turn must leave for its reply


@dataclass
class Early:
    """A reply that was begun in a pause, and how to undo it."""

    undo: Undo
    reply_item: str
    judged: bool = False


class Conversation:
    def __init__(
        self,
        session: str,
        settings: Settings,
        *,
        kit: Kit,
        memory: Memory,
        send: Callable[[api.Event], None],
        purge: Callable[[str], int],
        owner: str | None = None,
    ):
        """send, purge: see Replies. owner: the session for which this one transcribes; it is
        served after the others."""
        self.session, self.settings, self.kit, self.memory = session, settings, kit, memory
        self.listener = Listener(settings.turn_detection, exact=settings.exact_ear)
        self.owner = owner
        self.draft = Draft(kit, memory, camera_fps=settings.camera_fps)
        self.replies = Replies(
            session,
            kit=kit,
            memory=memory,
            send=send,
            purge=purge,
            clock=lambda: self.listener.now_s,
        )
        self.sounding = False  # a clip of the microphone is open
        self.early: Early | None = None

    def fail(self, code: str, message: str, *, param: str | None = None) -> None:
        self._tell(api.Failed, code=code, message=message, param=param)

    # ---- what is pushed

    def hear(self, samples: Any, sample_rate: int) -> None:
        try:
            signals = self.listener.push(samples, sample_rate=sample_rate)
        except ValueError as error:
            return self.fail("invalid_audio", str(error), param="audio")
        for signal in signals:
            self._signal(signal)

    def see(self, image: np.ndarray, time_s: float) -> None:
        """A frame of the camera."""
        try:
            self.draft.camera.push(image, time_s=time_s, now_s=self.listener.now_s)
        except ValueError as error:
            self.fail("invalid_image", str(error), param="time_s")

    def take(self, content: Content) -> None:
        """Words, or a medium with its markers, for the open turn."""
        if isinstance(content, str) and self._is_too_long(content):
            return
        if self.early is None and not self.sounding:
            return self.draft.put(content)
        if self.early is None:
            self.draft.open()
        if not self.draft.wait(content):
            self.fail("overloaded", "too much waits for the end of the open sound; commit it first")

    def add(self, prompt: Prompt, *, role: str, item: str, after: str | None = None) -> None:
        """A whole message."""
        if self._is_taken(item):
            return
        self.forget_early()
        added = Item(item, role, [Piece.of(prompt)])
        if not self.memory.insert(added, after=after):
            message = f"there is no item {after} to stand behind"
            return self.fail("item_not_found", message, param="previous_item_id")
        self._resync()
        self._tell(api.TurnCommitted, item=item, previous=self.memory.before(added), role=role)

    # ---- what is asked for

    def commit(self, *, item: str | None, respond: bool) -> None:
        if item is not None and self._is_taken(item):
            return
        if not respond:
            self.forget_early()
        for signal in self.listener.commit():
            if isinstance(signal, Ended):
                self._sound_ended(signal)
            else:
                self._signal(signal)
        if self.early is not None:
            return self._count_early()
        if self.draft.item is None:
            message = "nothing was pushed since the last commit; push sound, a picture or text"
            return self.fail("input_audio_buffer_commit_empty", message)
        self._committed(self.draft.close(item))
        if respond:
            self.replies.want(Request(self.kit.new_id("resp")), self.settings)

    def clear(self) -> None:
        self.listener.clear()
        self.sounding = False
        self.forget_early()
        if self.draft.forget():
            self._resync()
        self._tell(api.InputCleared)

    def respond(self, request: Request) -> None:
        self.forget_early()
        if (active := self.replies.current) is not None:
            return self.fail(
                "conversation_already_has_active_response",
                "Conversation already has an active response in progress: "
                f"{active.response}. Wait until the response is finished before creating a new "
                "one.",
            )
        if request.said is not None and self._is_too_long(request.said):
            return
        self.replies.want(request, self.settings)

    def cancel(self) -> None:
        if self.replies.current is None or self.early is not None:
            message = "Cancellation failed: no active response found"
            return self.fail("response_cancel_not_active", message)
        self.replies.generation += 1
        self.replies.interrupt("client_cancelled")

    def truncate(self, item_id: str, audio_ms: int) -> None:
        self.forget_early()
        if (item := self._find(item_id)) is None:
            return
        if not item.was_spoken or self._speaks(item):
            message = "Only model output audio messages can be truncated, once they are over"
            return self.fail("invalid_value", message, param="item_id")
        if not 0 <= audio_ms <= item.audio_ms:
            message = f"Audio content of {item.audio_ms}ms is already shorter than {audio_ms}ms"
            return self.fail("invalid_value", message, param="audio_end_ms")
        self.replies.truncate(item, audio_ms)
        self._resync()

    def delete(self, item_id: str) -> None:
        self.forget_early()
        if (item := self._find(item_id)) is None:
            return
        if item is self.draft.item or self._speaks(item):
            message = f"{item_id} is not finished; commit or cancel it first"
            return self.fail("invalid_value", message, param="item_id")
        self.memory.items.remove(item)
        self._resync()
        self._tell(api.ItemDeleted, item=item_id)

    def update(self, settings: Settings, system: Piece | None) -> None:
        """New settings, already checked; system: the new first piece, if that has changed."""
        self.forget_early()  # it was thought with the old ones
        if settings.camera_fps != self.settings.camera_fps:
            self.draft.set_fps(settings.camera_fps)
        self.settings = settings
        for signal in self.listener.update(settings.turn_detection):
            self._signal(signal)
        if system is not None:
            self.memory.items[0].pieces = [system]
            self._resync()
        self._tell(api.Updated, settings=settings)

    # ---- what the ear signals

    def _signal(self, signal: Signal) -> None:
        match signal:
            case Began():
                self._began(signal)
            case Heard():
                self.draft.hear(signal.mel, start_s=signal.start_s)
            case Paused():
                self._paused(signal)
            case WentOn():
                self.forget_early()
            case Ended():
                self._ended(signal)

    def _began(self, signal: Began) -> None:
        self.sounding = True
        detection = self.settings.turn_detection
        if detection is None:
            return
        turn, self.draft.named = self.draft.open(), True
        interrupts = detection.interrupt_response and self.replies.is_heard
        if interrupts:
            self.replies.generation += 1
        self._tell(api.SpeechStarted, item=turn.id, audio_ms=round(1000 * signal.start_s))
        if interrupts:
            self.replies.interrupt("turn_detected")

    def _paused(self, signal: Paused) -> None:
        """Begins the reply as if the turn were over, in silence."""
        detection = self.settings.turn_detection
        busy = self.replies.current is not None or self.early is not None
        if detection is None or not detection.create_response or busy:
            return
        undo = self.draft.undo()
        if signal.tail is not None:
            self.draft.hear(signal.tail, start_s=signal.tail_start_s)
        self.draft.close()
        self.replies.hold = []
        self.replies.want(Request(self.kit.new_id("resp")), self.settings)
        assert self.replies.current is not None
        self.early = Early(undo, self.replies.current.item.id)

    def judge(self) -> None:
        """Tells the ear how complete the model finds what was said, as soon as that is known."""
        if self.early is None or self.early.judged or self.replies.current is None:
            return
        if not isinstance(self.settings.turn_detection, SemanticVad):
            return
        completeness = self.replies.completeness()
        if completeness is not None:
            self.early.judged = True
            for signal in self.listener.judge(completeness):
                self._signal(signal)

    def forget_early(self) -> None:
        """The user goes on: what was thought in the pause leaves no trace."""
        if self.early is None:
            return
        early, self.early = self.early, None
        self.replies.drop()
        self.memory.items = [i for i in self.memory.items if i.id != early.reply_item]
        self.draft.reopen(early.undo)
        self.memory.sync()

    def _ended(self, signal: Ended) -> None:
        turn = self.early.undo.item if self.early else self.draft.open()
        self._tell(api.SpeechStopped, item=turn.id, audio_ms=round(1000 * signal.end_s))
        self._sound_ended(signal)
        if self.early is not None:
            return self._count_early()
        self._committed(self.draft.close())
        detection = self.settings.turn_detection
        if detection is not None and detection.create_response:
            self.replies.want(Request(self.kit.new_id("resp")), self.settings)

    def _sound_ended(self, signal: Ended) -> None:
        """Takes in the last window, unless an early reply has heard it already."""
        self.sounding = False
        if signal.whole is not None:
            self.forget_early()  # it was thought on another sound than the exact ear's
        if self.early is not None:
            return
        if signal.tail is not None:
            self.draft.hear(signal.tail, start_s=signal.tail_start_s)
        if signal.whole is not None and self.draft.hear_again(signal.whole):
            self._resync()

    def _count_early(self) -> None:
        """The turn is over, as the early reply has assumed."""
        assert self.early is not None
        early, self.early = self.early, None
        self._committed(early.undo.item)
        self.replies.release()
        later, self.draft.later = self.draft.later, []
        for content in later:  # pushed in the pause, after what was already answered
            self.draft.put(content)

    def _committed(self, turn: Item) -> None:
        self._tell(api.TurnCommitted, item=turn.id, previous=self.memory.before(turn))

    # ---- the length of the conversation

    def make_room(self) -> None:
        """Forgets the oldest turns when the context is nearly full; between replies only."""
        if self._is_busy or self.memory.num_known <= CONTEXT_SHARE * self._context:
            return
        target = int(KEPT_SHARE * self._context)
        self._forget_oldest(target)
        excess = self.memory.length - target
        if self.memory.length <= self._context - MIN_REPLY:
            return
        message = "this turn is longer than the context of the model; {} forgotten. End turns"
        message += " earlier, or show fewer or smaller pictures"
        if self.memory.shorten_last(excess):
            self.fail("turn_too_long", message.format("its oldest part is"))
        else:
            self._forget_last("turn_too_long", message.format("it is"))

    def forget_old(self) -> bool:
        """Frees blocks of a full cache without harm to what goes on; False if that cannot be."""
        return not self._is_busy and self._forget_oldest(self.memory.length // 2)

    def give_way(self) -> bool:
        """Frees blocks of a full cache whatever it costs; False if there is nothing to give up."""
        if self.early is not None:
            self.forget_early()
        elif self._is_busy:
            self.replies.finish("incomplete", "context_full")
        elif not self.forget_old():
            message = "the engine's cache is full; close sessions, or raise cache_positions"
            message += ". This turn is forgotten"
            return len(self.memory.items) > 1 and self._forget_last("cache_full", message)
        return True

    def _forget_oldest(self, target: int) -> bool:
        gone = self.memory.forget_oldest(target)
        if gone:
            names = tuple(item.id for item in gone)
            self._tell(api.HistoryDropped, items=names, positions=sum(i.num_ids for i in gone))
        return bool(gone)

    def _forget_last(self, code: str, message: str) -> bool:
        """Everything but the system prompt goes: the last turn cannot be held."""
        self.forget_early()
        self.draft.forget()
        self.listener.clear()
        self.sounding = False
        self.replies.wanted.clear()
        gone = self.memory.items[1:]
        if self.replies.current is not None:
            self.replies.finish("failed", "error")
        del self.memory.items[1:]
        self.memory.sync()
        self.fail(code, message)
        for item in gone:
            self._tell(api.ItemDeleted, item=item.id)
        return bool(gone)

    # ---- small things

    @property
    def _is_busy(self) -> bool:
        """A reply has begun, or may have to be undone."""
        reply = self.replies.current
        return self.early is not None or (reply is not None and reply.began)

    @property
    def _context(self) -> int:
        return self.kit.config.thinker_config.text_config.max_position_embeddings

    def _is_too_long(self, text: str) -> bool:
        """Whether the model could not take in these words and those before them, even if it had
        nothing else to remember."""
        text, longest = self.draft.composer.words + text, self._context - MIN_REPLY
        # a token is a byte at least, a character at most four
        if 4 * len(text) < longest or len(self.kit.tokenizer.encode(text)) < longest:
            return False
        message = f"the text is longer than the {self._context} tokens of the context; shorten it"
        self.fail("text_too_long", message, param="text")
        return True

    def _resync(self) -> None:
        """After items were edited; a reply in progress keeps its place in the caches."""
        if self.replies.current is None:
            self.memory.sync()

    def _is_taken(self, item_id: str) -> bool:
        taken = any(known.id == item_id for known in self.memory.items)
        if taken:
            message = f"the conversation already has an item {item_id}; choose another id"
            self.fail("item_create_duplicate_item_id", message, param="item.id")
        return taken

    def _find(self, item_id: str) -> Item | None:
        for item in self.memory.items[1:]:
            if item.id == item_id:
                return item
        message = f"there is no item {item_id} in the conversation"
        self.fail("item_not_found", message, param="item_id")
        return None

    def _speaks(self, item: Item) -> bool:
        reply = self.replies.current
        return reply is not None and reply.item is item

    def _tell(self, event: type[api.Event], **fields: Any) -> None:
        self.replies.tell(event, **fields)
