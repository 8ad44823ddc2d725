"""One model and its sessions: every tick moves each of them on by one step, all in batches.

listen (windows and pictures into features, prompts into both caches) -> think -> speak -> publish
-> voice. One thread does all of it; sessions are state, and the model has none.
"""

import atexit
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from thinktalk.live import scheduler
from thinktalk.live.blocks import BlockPool, OutOfBlocksError, Row
from thinktalk.live.conversation import Conversation
from thinktalk.live.passes import Chosen, Passes
from thinktalk.live.sessions import Sessions
from thinktalk.live.speak import Reply
from thinktalk.model.cache import BLOCK_POSITIONS
from thinktalk.model.dit import Solver
from thinktalk.weights import LoadedModel

IDLE_S = 0.5  # the longest sleep of a thread that nobody wakes
DEFAULT_POSITIONS = 8192  # cache positions per session, unless the context is shorter

log = logging.getLogger(__name__)


def live(model: LoadedModel, **options: Any) -> "Engine":
    """An engine that runs in a thread of its own; options as for Engine."""
    return Engine(model, **options)


class Engine(Sessions):
    """See api.Engine, which this implements."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_sessions: int = 8,
        cache_positions: int | None = None,
        solver: Solver = "euler",
        voice_rows: int | None = None,
        thread: bool = True,
        **options: Any,
    ):
        """cache_positions: of each cache, shared by all sessions (default: 8192 a session, or the
        context). voice_rows: replies whose voice is rendered in one tick at most. thread=False: the
        engine works when `step` is called, or while somebody waits for events. Further options: see
        Sessions."""
        context = model.config.thinker_config.text_config.max_position_embeddings
        positions = max_sessions * min(context, DEFAULT_POSITIONS)
        if cache_positions is not None:
            positions = cache_positions
        if positions < 1:
            raise ValueError(
                f"{max_sessions} sessions and {positions} cache positions are no engine; use at"
                " least 1 of each (max_sessions, cache_positions)"
            )
        thinker_pool, talker_pool = (
            BlockPool(
                config,
                num_blocks=-(-positions // BLOCK_POSITIONS),
                dtype=model.omni.thinker.dtype,
                device=model.device,
            )
            for config in (model.config.thinker_config.text_config, model.config.talker_config)
        )
        super().__init__(
            model,
            max_sessions=max_sessions,
            thinker_pool=thinker_pool,
            talker_pool=talker_pool,
            **options,
        )
        slots = 2 * max_sessions  # as many transcriptions may go on beside
        self.passes = Passes(
            model,
            num_slots=slots,
            thinker_pool=thinker_pool,
            talker_pool=talker_pool,
            solver=solver,
        )
        self.voice_rows = voice_rows or (2 if model.device.type == "cpu" else 32)
        self.counters: Counter[str] = Counter()
        self._slots: list[Reply | None] = [None] * slots
        self._gave_way = False  # in this tick, for want of room in a cache
        self._waker = threading.Event()
        self._stops = False
        self._thread: threading.Thread | None = None
        if thread:
            self._thread = threading.Thread(target=self._run, name="thinktalk", daemon=True)
            self._thread.start()
            # a thread that computes while the interpreter ends would abort the process
            atexit.register(_close, weakref.ref(self))

    # ---- the tick

    @torch.inference_mode()
    def step(self) -> bool:
        """One tick; False if there was nothing to do."""
        self._gave_way = False
        worked = self.intake()
        conversations = self.active()
        worked |= self._listen(conversations)
        self._begin_replies(conversations)
        thoughts = self._think(conversations)
        speech = self._speak(conversations)
        worked |= self._publish(conversations, thoughts, speech)
        worked |= self._voice(conversations)
        self._finish_replies(conversations)
        return worked or self._gave_way or thoughts is not None or speech is not None

    def _listen(self, conversations: Sequence[Conversation]) -> bool:
        pieces = scheduler.to_encode(conversations)
        if pieces:
            self.counters["encoded_pieces"] += len(pieces)
            self.passes.encode(pieces)
        prompts = scheduler.to_prefill(conversations)
        prompts = [
            (memory, spans)
            for memory, spans in prompts
            if self._reserve(
                self.memory_pools[0], memory.thinker_row, sum(s.stop - s.start for s in spans)
            )
        ]
        if prompts:
            self.passes.prefill(prompts)
            count = sum(s.stop - s.start for _, spans in prompts for s in spans)
            self.counters["prefill_positions"] += count
        tracks = [
            (memory, count)
            for memory, count in scheduler.to_tell(conversations)
            if self._reserve(self.memory_pools[1], memory.talker_row, count)
        ]
        if tracks:
            self.passes.tell(tracks)
        for conversation in conversations:
            self.prefixes.keep(conversation.memory)
            conversation.make_room()
        return bool(pieces or prompts or tracks)

    def _begin_replies(self, conversations: Sequence[Conversation]) -> None:
        for conversation in conversations:
            reply, memory = conversation.replies.current, conversation.memory
            if reply is not None and not reply.began and memory.at_barrier:
                free = (n for n, user in enumerate(self._slots) if user is None or user.ended)
                slot = next(free, None)
                if slot is None:
                    return
                self._slots[slot] = reply
                conversation.replies.begin_thinking()
                self.passes.begin(memory, reply, slot)

    def _think(self, conversations: Sequence[Conversation]) -> Chosen | None:
        work = scheduler.to_think(conversations)
        work = [
            (memory, reply)
            for memory, reply in work
            if reply.to_feed is None or self._reserve(self.memory_pools[0], memory.thinker_row, 1)
        ]
        self.counters["thinker_steps"] += bool(work)
        return self.passes.think(work) if work else None

    def _speak(self, conversations: Sequence[Conversation]) -> Chosen | None:
        work = [
            (memory, reply)
            for memory, reply in scheduler.to_speak(conversations)
            if self._reserve(self.memory_pools[1], memory.talker_row, 2)
        ]
        self.counters["talker_steps"] += bool(work)
        return self.passes.speak(work) if work else None

    def _publish(
        self, conversations: Sequence[Conversation], thoughts: Chosen | None, speech: Chosen | None
    ) -> bool:
        """Hands the chosen ids on: the one place that waits for the device."""
        owners = {id(c.replies.current): c for c in conversations}
        if thoughts is not None:
            values = zip(thoughts.ids.tolist(), thoughts.log_probabilities.tolist(), strict=True)
            for reply, (token, log_probability) in zip(thoughts.replies, values, strict=True):
                if not reply.ended:  # for want of room it may have, since it was chosen
                    owners[id(reply)].replies.text_chosen(token, log_probability)
                    owners[id(reply)].judge()
        if speech is not None:
            stop_ids = self.model.config.talker_config.stop_ids
            for reply, token in zip(speech.replies, speech.ids.tolist(), strict=True):
                reply.choose_codec(token, stop_ids=stop_ids)
        return thoughts is not None or speech is not None

    def _voice(self, conversations: Sequence[Conversation]) -> bool:
        work = scheduler.to_voice(conversations, block_due=self._block_due, limit=self.voice_rows)
        if not work:
            return False
        self.counters["voice_blocks"] += len(work)
        waves = self.passes.voice([(reply, count) for _, reply, count in work])
        for (conversation, _, _), wave in zip(work, waves, strict=True):
            conversation.replies.sound(wave.float().cpu().numpy())
        return True

    def _finish_replies(self, conversations: Sequence[Conversation]) -> None:
        for conversation in conversations:
            reply = conversation.replies.current
            if reply is None or not reply.over:
                continue
            if reply.limited:
                conversation.replies.finish("incomplete", "max_output_tokens")
            else:
                conversation.replies.finish()

    def _block_due(self, reply: Reply) -> int:
        if reply.codec_done and not reply.codec_ids:
            reply.voice_done = True
            return 0
        return self.model.omni.token2wav.block_due(
            len(reply.codec_ids), blocks=reply.blocks, finished=reply.codec_done
        )

    # ---- the thread

    def wake(self) -> None:
        self._waker.set()

    @property
    def has_thread(self) -> bool:
        return self._thread is not None

    def close(self) -> None:
        self.is_closed = True
        for session in list(self.sessions.values()):
            session.close()
        self._stops = True
        self.wake()
        if self._thread is not None:
            self._thread.join()
        while self.step():
            pass
        self.close_workers()

    def _run(self) -> None:
        while not self._stops:
            self._waker.clear()
            try:
                worked = self.step()
            except Exception as error:  # the edge of the task: sessions must learn of it
                log.exception("the engine failed")
                self.fail_all(f"the engine failed: {error}")
                continue
            if not worked:
                self._waker.wait(IDLE_S)

    # ---- room in the caches

    def _reserve(self, pool: BlockPool, row: Row, count: int) -> bool:
        """Room for `count` more positions, if need be in place of kept prefixes. False, and the
        row's conversation has given something up, if there is none."""
        while True:
            try:
                pool.reserve(row, count)
                return True
            except OutOfBlocksError:
                if not self.prefixes.drop():
                    self._give_up(row)
                    return False

    def _give_up(self, row: Row) -> None:
        owner = next(
            c
            for c in list(self.conversations.values())
            if row is c.memory.thinker_row or row is c.memory.talker_row
        )
        self._gave_way = True
        if not owner.give_way():
            self.abort(owner, "the engine's cache has no room for this session; try again later")

    def stats(self) -> dict[str, float]:
        replies = [c.replies.current for c in list(self.conversations.values())]
        return {
            **self.counters,
            "prefixes_used": self.prefixes.num_used,
            "sessions": len(self.sessions),
            "replies": sum(reply is not None for reply in replies),
            "waiting_positions": sum(
                c.memory.num_waiting for c in list(self.conversations.values())
            ),
            "thinker_blocks_free": self.memory_pools[0].num_free,
            "talker_blocks_free": self.memory_pools[1].num_free,
            "blocks": self.memory_pools[0].num_blocks,
        }


def _close(engine: "weakref.ref[Engine]") -> None:
    if (alive := engine()) is not None:
        alive.close()
