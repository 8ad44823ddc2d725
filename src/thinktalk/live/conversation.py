"""One conversation: signals of the ear and the caller's commands in, items and replies out.

Decides what shall stand in the caches and when a reply begins, counts, or is thrown away. Computes
nothing with the network; only the engine's thread calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from thinktalk.live import api
from thinktalk.live.history import Composer, Item, Piece
from thinktalk.live.camera import Camera
from thinktalk.live.listen import Began, Ended, Heard, Listener, Paused, Signal, WentOn
from thinktalk.live.memory import Memory
from thinktalk.live.replies import Kit, Replies, Request
from thinktalk.media.mel import ENCODER_WINDOW_FRAMES
from thinktalk.media.prompt import Prompt
from thinktalk.media.video import video_patches
from thinktalk.options import SemanticVad, Settings

CONTEXT_SHARE, KEPT_SHARE = 0.85, 0.5  # of the context: where old turns go, and what stays
MIN_REPLY = 64  # positions that a turn must leave for its reply
FRAMES_PER_SECOND = 100


@dataclass
class Early:
    """A reply that was begun in a pause, and how to undo it."""

    turn: Item
    num_pieces: int
    composer: Composer
    later: list[str | Prompt]
    reply_item: str


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
        background: bool = False,
    ):
        """send, purge: see Replies. background: served after the others."""
        self.session, self.settings, self.kit, self.memory = session, settings, kit, memory
        self.listener = Listener(settings.turn_detection, exact=settings.exact_ear)
        self.background = background
        self.camera = Camera(settings.camera_fps)
        self.composer = kit.composer()
        self.replies = Replies(
            session,
            kit=kit,
            memory=memory,
            send=send,
            purge=purge,
            clock=lambda: self.listener.now_s,
        )
        self.turn: Item | None = None  # the open one
        self.later: list[str | Prompt] = []  # came while the turn's sound was open and follows it
        self.early: Early | None = None
        self.judged = False
        self.rows_at_commit = 0  # positions that were not in the cache when the last turn ended

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
            self.camera.push(image, time_s=time_s, now_s=self.listener.now_s)
        except ValueError as error:
            self.fail("invalid_image", str(error), param="time_s")

    def take(self, content: str | Prompt) -> None:
        """Words, or a medium with its markers, for the open turn."""
        sounding = self.turn is not None and self.composer.open is not None
        if sounding or self.early is not None:
            self.later.append(content)
        else:
            self._compose(self._open(), content)

    def add(self, prompt: Prompt, *, role: str, item: str) -> None:
        """A whole message."""
        if any(known.id == item for known in self.memory.items):
            message = f"the conversation already has an item {item}; choose another id"
            return self.fail("item_create_duplicate_item_id", message, param="item.id")
        self.forget_early()
        added = Item(item, role, [Piece.of(prompt)])
        self.memory.insert(added)
        self._resync()
        self._tell(api.TurnCommitted, item=item, previous=self.memory.before(added), role=role)

    # ---- what is asked for

    def commit(self, *, item: str | None, respond: bool) -> None:
        for signal in self.listener.commit():
            if not isinstance(signal, Ended):
                self._signal(signal)
            elif self.early is None:
                self._open(item)
                self._last_window(signal)
        if self.early is not None:
            return self._count_early()
        if self.turn is None:
            message = "nothing was pushed since the last commit; push sound, a picture or text"
            return self.fail("input_audio_buffer_commit_empty", message)
        self._committed(self._close_turn())
        if respond:
            self.replies.want(Request(self.kit.new_id("resp")), self.settings)

    def clear(self) -> None:
        self.listener.clear()
        self.forget_early()
        if self.turn is not None:
            self.memory.items.remove(self.turn)
            self.turn = None
            self._resync()
        self.later = []
        self._tell(api.InputCleared)

    def respond(self, request: Request) -> None:
        self.forget_early()
        active = self.replies.current
        if active is not None:
            return self.fail(
                "conversation_already_has_active_response",
                "Conversation already has an active response in progress: "
                f"{active.response}. Wait until the response is finished before creating a new "
                "one.",
            )
        self.replies.want(request, self.settings)

    def cancel(self) -> None:
        if self.replies.current is None or self.early is not None:
            message = "Cancellation failed: no active response found"
            return self.fail("response_cancel_not_active", message)
        self.replies.generation += 1
        self.replies.interrupt("client_cancelled")

    def truncate(self, item_id: str, audio_ms: int) -> None:
        item = self._find(item_id)
        if item is None:
            return
        if item.role != "assistant" or self._speaks(item):
            message = "Only model output audio messages can be truncated, once they are over"
            return self.fail("invalid_value", message, param="item_id")
        if not 0 <= audio_ms <= item.audio_ms:
            message = f"Audio content of {item.audio_ms}ms is already shorter than {audio_ms}ms"
            return self.fail("invalid_value", message, param="audio_end_ms")
        self.forget_early()
        self.replies.truncate(item, audio_ms)

    def delete(self, item_id: str) -> None:
        item = self._find(item_id)
        if item is None:
            return
        if item is self.turn or self._speaks(item):
            message = f"{item_id} is not finished; commit or cancel it first"
            return self.fail("invalid_value", message, param="item_id")
        self.forget_early()
        self.memory.items.remove(item)
        self._resync()
        self._tell(api.ItemDeleted, item=item_id)

    def update(self, settings: Settings, system: Piece | None) -> None:
        """New settings, already checked; system: the new first piece, if that has changed."""
        self.settings = settings
        for signal in self.listener.update(settings.turn_detection):
            self._signal(signal)
        if system is not None:
            self.forget_early()
            self.memory.items[0].pieces = [system]
            self._resync()
        self._tell(api.Updated, settings=settings)

    # ---- what the ear signals

    def _signal(self, signal: Signal) -> None:
        match signal:
            case Began():
                self._began(signal)
            case Heard():
                self._window(signal.start_s, signal.mel)
            case Paused():
                self._paused(signal)
            case WentOn():
                self.forget_early()
            case Ended():
                self._ended(signal)

    def _began(self, signal: Began) -> None:
        detection = self.settings.turn_detection
        if detection is None:
            return
        turn = self._open()
        interrupts = self.replies.current is not None and detection.interrupt_response
        if interrupts:
            self.replies.generation += 1
        self._tell(api.SpeechStarted, item=turn.id, audio_ms=round(1000 * signal.start_s))
        if interrupts:
            self.replies.interrupt("turn_detected")

    def _paused(self, signal: Paused) -> None:
        """Begins the reply as if the turn were over, in silence."""
        detection, turn = self.settings.turn_detection, self.turn
        busy = self.replies.current is not None or self.early is not None
        if detection is None or not detection.create_response or busy or turn is None:
            return
        undo = len(turn.pieces), self.composer.copy(), list(self.later)
        self._window_until(signal.at_s, signal.tail)
        self._close_turn()
        self.replies.hold = []
        self.replies.want(Request(self.kit.new_id("resp")), self.settings)
        assert self.replies.current is not None
        self.early = Early(turn, *undo, self.replies.current.item.id)
        self.judged = False

    def judge(self) -> None:
        """Tells the ear how complete the model finds what was said, as soon as that is known."""
        if self.early is None or self.judged or self.replies.current is None:
            return
        if not isinstance(self.settings.turn_detection, SemanticVad):
            return
        completeness = self.replies.completeness()
        if completeness is not None:
            self.judged = True
            for signal in self.listener.judge(completeness):
                self._signal(signal)

    def forget_early(self) -> None:
        """The user goes on: what was thought in the pause leaves no trace."""
        if self.early is None:
            return
        early, self.early = self.early, None
        self.replies.drop()
        self.replies.hold = None
        self.replies.count -= 1
        self.memory.items = [i for i in self.memory.items if i.id != early.reply_item]
        del early.turn.pieces[early.num_pieces :]
        early.turn.is_open = True
        self.turn, self.composer = early.turn, early.composer
        self.later = early.later + self.later
        self.memory.sync()

    def _ended(self, signal: Ended) -> None:
        if signal.whole is not None:
            self.forget_early()  # it was thought on another sound than the exact ear's
        turn = self.early.turn if self.early else self.turn
        assert turn is not None, "an end without a beginning"
        self._tell(api.SpeechStopped, item=turn.id, audio_ms=round(1000 * signal.end_s))
        if self.early is not None:
            return self._count_early()
        self._last_window(signal)
        self._committed(self._close_turn())
        detection = self.settings.turn_detection
        if detection is not None and detection.create_response:
            self.replies.want(Request(self.kit.new_id("resp")), self.settings)

    def _count_early(self) -> None:
        """The turn is over, as the early reply has assumed."""
        assert self.early is not None
        early, self.early = self.early, None
        self._committed(early.turn)
        self.replies.release()
        for content in self.later:  # pushed in the pause, after what was already answered
            self._compose(self._open(), content)
        self.later = []

    # ---- the open turn

    def _open(self, item: str | None = None) -> Item:
        if self.turn is None:
            self.turn = Item(item or self.kit.new_id("item"), "user", is_open=True)
            self.composer = self.kit.composer()
            self.composer.begin("user")
            self.memory.items.append(self.turn)
        return self.turn

    def _compose(self, turn: Item, content: str | Prompt) -> None:
        if isinstance(content, str):
            self.composer.text(content)
        else:
            self.composer.add(content)
        self.memory.add(turn, self.composer.take())

    def _window(self, start_s: float, mel: np.ndarray) -> None:
        """Sound of at most 2 s, with the camera's frames of the same time."""
        turn, sound = self._open(), torch.from_numpy(mel)
        frames = self.camera.take(start_s, mel.shape[1] / FRAMES_PER_SECOND)
        if frames:
            processor, size = self.kit.processor, frames[0].shape[:2]
            patches, grid = video_patches(np.stack(frames), processor=processor, size=size)
            seconds = processor.temporal_patch_size / self.settings.camera_fps
            self.composer.watch(
                torch.from_numpy(patches), grid, seconds_per_pair=seconds, mel=sound
            )
        else:
            self.composer.hear(sound)
        self.memory.add(turn, self.composer.take())

    def _window_until(self, stop_s: float, mel: np.ndarray | None) -> None:
        if mel is not None:
            self._window(max(0.0, stop_s - mel.shape[1] / FRAMES_PER_SECOND), mel)

    def _last_window(self, signal: Ended) -> None:
        turn = self.turn
        if signal.whole is None or turn is None or not self._only_sound(turn):
            return self._window_until(signal.end_s, signal.tail)
        self.composer = self.kit.composer()
        self.composer.begin("user")
        for start in range(0, signal.whole.shape[1], ENCODER_WINDOW_FRAMES):
            window = signal.whole[:, start : start + ENCODER_WINDOW_FRAMES]
            self.composer.hear(torch.from_numpy(window))
        turn.pieces = [piece for piece in (self.composer.take(),) if piece is not None]
        self._resync()

    def _only_sound(self, turn: Item) -> bool:
        """Whether the exact ear can simply hear the turn again."""
        config = self.kit.config.thinker_config
        kinds = {i for piece in turn.pieces for i in piece.ids} & set(config.media_token_ids)
        return kinds <= {config.audio_token_index} and not any(
            config.audio_end_token_id in piece.ids for piece in turn.pieces
        )

    def _close_turn(self) -> Item:
        """Writes the end of the open turn, which may still be undone."""
        turn = self.turn
        assert turn is not None
        self.composer.close()
        later, self.later = self.later, []
        for content in later:
            self._compose(turn, content)
        self.composer.end()
        self.memory.add(turn, self.composer.take())
        self.turn, turn.is_open = None, False
        return turn

    def _committed(self, turn: Item) -> None:
        self.rows_at_commit = self.memory.num_waiting
        self._tell(api.TurnCommitted, item=turn.id, previous=self.memory.before(turn))

    # ---- the length of the conversation

    def make_room(self) -> None:
        """Forgets the oldest turns when the context is nearly full; between replies only."""
        if self.replies.current is not None or self.early is not None:
            return
        context = self.kit.config.thinker_config.text_config.max_position_embeddings
        if self.memory.length <= CONTEXT_SHARE * context:
            return
        gone = self.memory.forget_oldest(int(KEPT_SHARE * context))
        if gone:
            names = tuple(item.id for item in gone)
            self._tell(api.HistoryDropped, items=names, positions=sum(i.num_ids for i in gone))
        excess = self.memory.length - int(KEPT_SHARE * context)
        if self.memory.length > context - MIN_REPLY and self.memory.shorten_last(excess):
            self.fail(
                "turn_too_long",
                "this turn is longer than the context of the model; its oldest part is forgotten. "
                "End turns earlier, or show fewer or smaller pictures",
            )

    def fork_into(self, twin: "Conversation") -> None:
        """Gives a new conversation this one's past; a reply in progress stays behind."""
        self.forget_early()
        if self.replies.current is None:
            twin.memory.copy(self.memory)
        else:
            twin.memory.copy(self.memory, without=self.replies.current.item)
        twin.listener = Listener.from_state(self.listener.state())
        twin.replies.count = self.replies.count
        if self.turn is not None:
            twin.turn = twin.memory.items[-1]
            twin.composer, twin.later = self.composer.copy(), list(self.later)

    # ---- small things

    def _resync(self) -> None:
        """After items were edited; a reply in progress keeps its place in the caches."""
        if self.replies.current is None:
            self.memory.sync()

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
