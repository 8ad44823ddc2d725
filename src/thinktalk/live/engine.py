"""One model and its sessions: every tick moves each of them on by one step, all in batches.

listen (windows and pictures into features, prompts into both caches) -> think -> speak -> publish
-> voice. One thread does all of it, but for the voice on a CPU, which is rendered by a few others
(see voicing.py); it alone touches sessions, which are state, and the model has none.
"""

import atexit
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from thinktalk.config import Solver
from thinktalk.live import scheduler
from thinktalk.live.blocks import BlockPool, OutOfBlocksError, Row
from thinktalk.live.conversation import Conversation
from thinktalk.live.graphs import Graphs
from thinktalk.live.passes import Chosen, Passes
from thinktalk.live.sessions import NO_ROOM, Sessions
from thinktalk.live.speak import Reply
from thinktalk.live.voicing import VoiceJob, VoiceWorkers, compute_with, num_voice_threads
from thinktalk.model.cache import BLOCK_POSITIONS
from thinktalk.weights import LoadedModel

IDLE_S = 0.5  # the longest sleep of a thread that nobody wakes
DEFAULT_POSITIONS = 8192  # cache positions per session, unless the context is shorter
# Replies whose voice is rendered at once, and how many of their blocks. On a CPU two small groups
# together take 3/4 of the time, but two of four blocks as long as one after the other.
VOICE_ROWS, VOICE_BLOCKS = {"cpu": 2, "cuda": 32}, {"cpu": 4, "cuda": 128}
ALONE_BLOCKS = 2  # of the only reply are rendered by the engine's thread, before the voice's do
REPLY_END = 8  # positions kept for the end of a reply, should the cache be full by then

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
        solver: Solver | None = None,
        voice_rows: int | None = None,
        voice_threads: int | None = None,
        graphs: bool | None = None,
        thread: bool = True,
        **options: Any,
    ):
        """cache_positions: of each cache, shared by all sessions (default: 8192 a session, or the
        context). solver: of the voice's ODE, by default the checkpoint's. voice_rows: replies whose
        voice is rendered at once at most. voice_threads: how many threads render it beside the
        engine's, on a CPU (default: as many as torch computes with, for a small model; for one like
        the official ones 0: give it as many as sessions shall speak at once). Each computes with
        one thread of torch, the engine's with those left. graphs: whether steps run on fixed
        buffers, as CUDA graphs (see graphs.py; by default on CUDA only). thread=False: the engine
        works when `step` is called, or while somebody waits for events. Others: see Sessions."""
        kind = model.device.type
        dit = model.config.token2wav_config.dit_config
        voice_threads = num_voice_threads(
            voice_threads, width=dit.hidden_size, device=model.device, live=thread
        )
        thinker_pool, talker_pool = _pools(model, max_sessions, cache_positions)
        super().__init__(
            model,
            max_sessions=max_sessions,
            thinker_pool=thinker_pool,
            talker_pool=talker_pool,
            **options,
        )
        graphs = kind == "cuda" if graphs is None else graphs
        slots = 2 * max_sessions  # as many transcriptions may go on beside
        self.passes = Passes(
            model,
            num_slots=slots,
            thinker_pool=thinker_pool,
            talker_pool=talker_pool,
            solver=solver,
            graphs=Graphs(model.device) if graphs else None,
        )
        self.voice_rows = voice_rows or VOICE_ROWS.get(kind, 2)
        self.voice_blocks = VOICE_BLOCKS.get(kind, 4)
        self.counters: Counter[str] = Counter()
        self._slots: list[Reply | None] = [None] * slots
        self._gave_way = False  # in this tick, for want of room in a cache
        self._waker = threading.Event()
        self._stops = False
        self._voices = VoiceWorkers(
            voice_threads, render=lambda job: self.passes.render(job), wake=self.wake
        )
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
        thinker, talker = self.memory_pools
        prompts = scheduler.to_prefill(conversations)
        counts = [sum(span.stop - span.start for span in spans) for _, spans in prompts]
        if self._reserve(thinker, [memory.thinker_row for memory, _ in prompts], counts):
            self.passes.prefill(prompts)
            self.counters["prefill_positions"] += sum(counts)
        tracks = scheduler.to_tell(conversations)
        rows, counts = [memory.talker_row for memory, _ in tracks], [count for _, count in tracks]
        if self._reserve(talker, rows, counts):
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
        rows = [memory.thinker_row for memory, _ in work]
        if not self._reserve(self.memory_pools[0], rows, [1 + REPLY_END] * len(rows)):
            return None
        self.counters["thinker_steps"] += 1
        return self.passes.think(work)

    def _speak(self, conversations: Sequence[Conversation]) -> Chosen | None:
        work = scheduler.to_speak(conversations)
        rows = [memory.talker_row for memory, _ in work]
        if not self._reserve(self.memory_pools[1], rows, [2] * len(rows)):
            return None
        self.counters["talker_steps"] += 1
        return self.passes.speak(work)

    def _publish(
        self, conversations: Sequence[Conversation], thoughts: Chosen | None, speech: Chosen | None
    ) -> bool:
        """Hands the chosen ids on: the one place that waits for the device."""
        owners = {id(c.replies.current): c for c in conversations}
        if thoughts is not None and thoughts.log_probabilities is not None:
            values = zip(thoughts.ids.tolist(), thoughts.log_probabilities.tolist(), strict=True)
            for reply, (token, (of_it, of_stop)) in zip(thoughts.replies, values, strict=True):
                if not reply.ended:  # for want of room it may have, since it was chosen
                    owners[id(reply)].replies.text_chosen(token, of_it, of_stop)
                    owners[id(reply)].judge()
        if speech is not None:
            stop_ids = self.model.config.talker_config.stop_ids
            for reply, token in zip(speech.replies, speech.ids.tolist(), strict=True):
                reply.choose_codec(token, stop_ids=stop_ids)
        return thoughts is not None or speech is not None

    def _voice(self, conversations: Sequence[Conversation]) -> bool:
        """Hands out what is due to be rendered, and hands on what has been."""
        work = scheduler.to_voice(
            conversations,
            block_due=self._block_due,
            jobs=self._voices.num_idle,
            rows=self.voice_rows,
            blocks=self.voice_blocks,
        )
        for part in work:
            self.counters["voice_blocks"] += len(part)
            self._voices.submit(self.passes.voice_job(part), here=self._is_alone(part))
            for reply, _ in part:
                reply.rendering = True
        finished = self._voices.finished()
        for job in finished:
            self._voiced(job)
        return bool(work or finished)

    def _is_alone(self, part: Sequence[tuple[Reply, int]]) -> bool:
        """Whether this is how the only reply begins to sound: quickest without another thread, for
        two hinder each other, and nobody else waits."""
        return part[0][0].blocks < ALONE_BLOCKS and sum(r is not None for r in self._slots) == 1

    def _voiced(self, job: VoiceJob) -> None:
        """Sends the sound of those replies that are not over since the job was made."""
        owners = {id(c.replies.current): c for c in list(self.conversations.values())}
        if job.error is None:
            for reply, wave in self.passes.voiced(job):
                owners[id(reply)].replies.sound(wave.float().cpu().numpy())
            return
        log.error("a job of the voice failed", exc_info=job.error)
        for reply in job.replies:
            reply.rendering = False
            if len(job.replies) > 1:
                reply.renders_alone = True  # it need not be this one's fault
            elif not reply.ended:
                self.abort(owners[id(reply)], f"the voice of this session failed: {job.error}")

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
        self._voices.close()
        while self.step():
            pass
        self.close_workers()

    def _run(self) -> None:
        if self._voices.num_threads:
            compute_with(max(1, torch.get_num_threads() - self._voices.num_threads))
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

    def _reserve(self, pool: BlockPool, rows: Sequence[Row], counts: Sequence[int]) -> bool:
        """Makes room for so many more positions of every row, if need be in place of kept prefixes.
        False if there is nothing to do, or somebody had to give way: then it is done next tick."""
        for row, count in zip(rows, counts, strict=True):
            while True:
                try:
                    pool.reserve(row, count)
                    break
                except OutOfBlocksError:
                    if not self.prefixes.drop():
                        self._make_way(pool, row, -(-(row.length + count) // BLOCK_POSITIONS))
                        return False
        return bool(rows)

    def _make_way(self, pool: BlockPool, row: Row, blocks: int) -> None:
        """For a row that needs so many blocks in all. Those that want more than a fair share of
        the full cache forget old turns. If none can, a transcription goes; else a reply or a turn:
        of the row's own session if that is one of them, else of the fullest that has any. If there
        is none, the row's session ends."""
        self._gave_way = True

        def wanted(conversation: Conversation) -> tuple[bool, int]:
            memory = conversation.memory
            own = memory.thinker_row if pool is memory.thinker else memory.talker_row
            count = blocks if own is row else len(own.blocks)
            return conversation.owner is not None and count > 0, count

        everybody = sorted(list(self.conversations.values()), key=wanted, reverse=True)
        share = False, pool.num_blocks // self.max_sessions
        greedy = [c for c in everybody if wanted(c) > share]
        if any(conversation.forget_old() for conversation in greedy):
            return
        needy = next(
            c for c in everybody if row is c.memory.thinker_row or row is c.memory.talker_row
        )
        if everybody[0].owner is not None:
            self.abort(everybody[0], NO_ROOM)
        elif not any(c.give_way() for c in ([needy] if needy in greedy else greedy)):
            self.abort(needy, NO_ROOM)

    def stats(self) -> dict[str, float]:
        replies = [c.replies.current for c in list(self.conversations.values())]
        return {
            **self.counters,
            "prefixes_used": self.prefixes.num_used,
            "sessions": len(self.sessions),
            "replies": sum(reply is not None for reply in replies),
            "voice_jobs": self._voices.num_busy,
            "waiting_positions": sum(
                c.memory.num_waiting for c in list(self.conversations.values())
            ),
            "thinker_blocks_free": self.memory_pools[0].num_free,
            "talker_blocks_free": self.memory_pools[1].num_free,
            "blocks": self.memory_pools[0].num_blocks,
        }


def _pools(
    model: LoadedModel, max_sessions: int, cache_positions: int | None
) -> tuple[BlockPool, BlockPool]:
    """The caches of Thinker and Talker."""
    config = model.config.thinker_config.text_config
    positions = cache_positions
    if positions is None:
        positions = max_sessions * min(config.max_position_embeddings, DEFAULT_POSITIONS)
    if positions < 1:
        raise ValueError(
            f"{max_sessions} sessions and {positions} cache positions are no engine; use at"
            " least 1 of each (max_sessions, cache_positions)"
        )
    thinker_pool, talker_pool = (
        BlockPool(
            decoder,
            num_blocks=-(-positions // BLOCK_POSITIONS),
            dtype=model.omni.thinker.dtype,
            device=model.device,
        )
        for decoder in (config, model.config.talker_config)
    )
    return thinker_pool, talker_pool


def _close(engine: "weakref.ref[Engine]") -> None:
    if (alive := engine()) is not None:
        alive.close()
