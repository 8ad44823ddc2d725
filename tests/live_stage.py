"""An engine without a thread, and what its sessions say: for the tests of the live engine."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import thinktalk
from thinktalk.live import api
from thinktalk.live.blocks import BlockPool, Row
from thinktalk.live.conversation import Conversation
from thinktalk.live.engine import Engine
from thinktalk.live.memory import Memory
from thinktalk.live.session import LiveSession
from thinktalk.live.speak import Reply
from thinktalk.model.cache import BLOCK_POSITIONS
from thinktalk.weights import LoadedModel

SHORT: dict[str, Any] = {"max_text_tokens": 6, "max_codec_ids": 14}
DELTAS = [api.TextDelta, api.AudioDelta]
CALL = '<tool_call>\n{"name": "move", "arguments": {"steps": 2}}\n</tool_call>'
PATIENCE_S = 30.0  # for files that are read in workers


@dataclass
class Said:
    """A reply as its listener has it, and the ids behind it."""

    text: str
    wave: np.ndarray
    done: api.ResponseDone
    text_ids: list[int]
    codec_ids: list[int]

    @property
    def ids(self) -> tuple[list[int], list[int]]:
        return self.text_ids, self.codec_ids


@cache
def load(folder: Path) -> LoadedModel:
    return thinktalk.load(folder)


class Stage:
    def __init__(self, model: LoadedModel, **options: Any):
        self.engine = Engine(model, thread=False, **options)
        self.model = model
        self._replies: dict[str, Reply] = {}
        begin = self.engine.passes.begin

        def watched(memory: Memory, reply: Reply, slot: int) -> None:
            self._replies[reply.response] = reply
            begin(memory, reply, slot)

        self.engine.passes.begin = watched

    def open(self, **settings: Any) -> LiveSession:
        return self.engine.open(**{**SHORT, **settings})

    def of(self, session: LiveSession) -> Conversation:
        return self.engine.conversations[session.id]

    def memory(self, session: LiveSession) -> Memory:
        return self.of(session).memory

    def run(self, ticks: int | None = None) -> int:
        """Ticks until there is nothing to do, or so many; returns how many."""
        count = 0
        while count != ticks and (self.engine.step() or ticks is not None):
            count += 1
        return count

    def read(self, session: LiveSession) -> None:
        """Waits for the workers that read what was pushed: real time does not run here."""
        for waiting in list(session.inbox):
            if waiting.media is not None:
                waiting.media.exception(PATIENCE_S)

    def told(self, session: LiveSession) -> list[api.Event]:
        """Everything there is to tell."""
        return list(session.events(timeout_s=PATIENCE_S))

    def so_far(self, session: LiveSession) -> list[api.Event]:
        """What has been told by now, without a tick."""
        events = []
        while (event := session.outbox.get(0)) is not None:
            events.append(event)
        return events

    def reply(self, session: LiveSession) -> Said:
        """The one reply among all that there is to tell."""
        [said] = self.replies(self.told(session))
        return said

    def replies(self, events: Iterable[api.Event]) -> list[Said]:
        """Every reply that is over in these events."""
        events = list(events)
        found = []
        for done in of_kind(events, api.ResponseDone):
            texts = [e.text for e in of_kind(events, api.TextDelta) if e.response == done.response]
            waves = [
                e.samples for e in of_kind(events, api.AudioDelta) if e.response == done.response
            ]
            reply = self._replies.get(done.response)
            found.append(
                Said(
                    "".join(texts),
                    np.concatenate([np.zeros(0, np.float32), *waves]),
                    done,
                    [] if reply is None else list(reply.text_ids),
                    [] if reply is None else list(reply.codec_ids),
                )
            )
        return found

    def failure(self, session: LiveSession, code: str) -> api.Failed:
        """The one thing there is to tell: this failure, of which the session does not die."""
        [failed] = self.told(session)
        assert isinstance(failed, api.Failed) and failed.code == code, failed
        assert failed.message and not failed.fatal
        return failed

    def text_of(self, session: LiveSession) -> str:
        """The conversation behind its system prompt, as it is prompted, without placeholders."""
        ids = [i for item in self.memory(session).items for p in item.pieces for i in p.ids]
        shown = self.engine.kit.tokenizer.decode(ids, keep_special=True).replace("<|AUDIO|>", "")
        return shown.split("<|im_end|>\n", 1)[1]

    def check(self, session: LiveSession) -> None:
        """The caches hold the items, both alike, as far as they have come."""
        memory = self.memory(session)
        past = [piece for item in memory.items for piece in item.pieces][: len(memory.past)]
        assert [mark.piece for mark in memory.past] == past
        assert memory.boundary == sum(len(piece.ids) for piece in past)
        if self.of(session).replies.current is None:
            assert memory.thinker_row.length == memory.boundary + memory.done
            waiting = sum(len(tracks) for tracks, _ in memory.to_tell)
            if memory.talker is not None:
                assert memory.talker_row.length + waiting == memory.boundary + memory.done
            for row in (memory.thinker_row, memory.talker_row):
                assert len(row.blocks) == -(-row.length // BLOCK_POSITIONS)

    def close(self) -> None:
        """Ends all; every block and slot must be free then."""
        self.engine.close()
        while self.engine.prefixes.drop():
            pass
        for pool in self.engine.memory_pools:
            assert pool.num_free == pool.num_blocks, "blocks are lost"
        assert not self.engine.conversations and not self.engine.sessions
        assert all(reply is None or reply.ended for reply in self.engine._slots)


def answered(stage: Stage, session: LiveSession, words: str = "What?") -> api.ResponseDone:
    session.push_text(words)
    session.commit()
    return stage.reply(session).done


@cache
def said_alone(
    folder: Path, ask: Callable[[LiveSession, int], None], n: int, **limits: Any
) -> Said:
    """What session n of a checkpoint replies where no other is."""
    stage = Stage(load(folder), max_sessions=1)
    session = stage.open(seed=n, **limits)
    ask(session, n)
    said = stage.reply(session)
    stage.close()
    return said


def goes_on(stage: Stage, who: LiveSession) -> None:
    """A session that still does what it is for."""
    who.push_text("Still there?")
    who.commit()
    [said] = stage.replies(stage.told(who))
    assert said.done.status in ("completed", "incomplete") and len(said.codec_ids) == 14
    stage.check(who)


def of_kind(events: Iterable[api.Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def names(events: Iterable[api.Event], *, without: Sequence[type] = ()) -> list[str]:
    return [type(event).__name__ for event in events if not isinstance(event, tuple(without))]


def push(session: LiveSession, wave: np.ndarray, *, size: int | None = None) -> None:
    """16 kHz sound in pieces of so many samples."""
    for start in range(0, len(wave), size or max(1, len(wave))):
        session.push_audio(wave[start : start + (size or len(wave))], sample_rate=16_000)


def rows(pool: BlockPool, row: Row) -> Tensor:
    """Keys and values of a row on top of each other."""
    return torch.stack(pool.read(row))


def in_order(events: Iterable[api.Event]) -> bool:
    """No event is stamped with an older generation than one before it."""
    stamps = [event.generation for event in events]
    return stamps == sorted(stamps)
