"""What a Realtime session's handlers work with, and how a changed configuration gets in force."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinktalk.live.api import Session
from thinktalk.options import Settings
from thinktalk.serve.limits import Allowance
from thinktalk.serve.realtime_config import PCM_HZ, Config
from thinktalk.serve.realtime_state import State
from thinktalk.serve.schema import ApiError
from thinktalk.serve.sessions import Sessions, Talk
from thinktalk.serve.sources import Sources


@dataclass
class Desk:
    """What handlers work with: the engine's session, the state on the wire, the server's rules.

    untouched: nothing was pushed or asked yet, so that the session may still be exchanged for one
    of another kind. silent: its conversation began as text, so it has no voice. heard_ms: sound
    since the last commit; now_ms: all sound so far.
    """

    talk: Talk
    state: State
    sessions: Sessions
    sources: Sources
    allowance: Allowance
    base: Settings
    reopen: Callable[[Settings], Awaitable[Talk]]
    silent: bool
    untouched: bool = True
    heard_ms: float = 0.0
    now_ms: float = 0.0
    odd: bytes = b""

    @property
    def session(self) -> Session:
        return self.talk.session

    @property
    def voices(self) -> tuple[str, ...]:
        return tuple(self.sessions.engine.voices)

    def hear(self, samples: NDArray[np.int16], *, rate: int = PCM_HZ) -> float:
        """Sound [n] of the user; returns how many seconds it is."""
        self.untouched = False
        self.session.push_audio(samples, sample_rate=rate)
        self.heard_ms += 1000 * len(samples) / rate
        self.now_ms += 1000 * len(samples) / rate
        return len(samples) / rate


async def apply(desk: Desk, config: Config) -> None:
    """Puts a configuration in force. Raises ApiError for what cannot change any more."""
    before = desk.state.config
    if config.voice != before.voice and desk.state.spoke:
        message = "the voice cannot change once it was heard; open another session"
        raise ApiError(400, message, code="cannot_update_voice", param="session.audio.output.voice")
    if config.kind != before.kind and not desk.untouched:
        message = "session.type cannot change once something was said"
        raise ApiError(400, message, code="invalid_value", param="session.type")
    settings = config.settings(desk.base)
    current = before.settings(desk.base)
    if settings.speak != current.speak and desk.untouched:
        desk.talk, desk.silent = await desk.reopen(settings), not settings.speak
    elif settings.speak and desk.silent:
        message = "a conversation that began as text stays so; open another session"
        raise ApiError(400, message, code="invalid_value", param="session.output_modalities")
    elif changes := differences(current, settings, [field.name for field in fields(Settings)]):
        desk.session.update(**changes)
    desk.state.config = config


def differences(now: Settings, then: Settings, names: Sequence[str]) -> dict[str, Any]:
    """Those of the named fields in which settings differ, as they shall be then."""
    return {n: getattr(then, n) for n in names if getattr(now, n) != getattr(then, n)}


def wire_session(desk: Desk) -> dict[str, Any]:
    state = desk.state
    return state.config.wire(session=state.id, model=state.model, **state.extras)
