"""Which replies are rendered together, by how many threads, and with how many of torch's."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from live_stage import SHORT, load

from thinktalk.live import api, scheduler, voicing
from thinktalk.live.engine import Engine
from thinktalk.live.speak import Reply
from thinktalk.weights import LoadedModel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def model(tiny_checkpoint: Callable[[str], Path]) -> LoadedModel:
    return load(tiny_checkpoint("7b"))


# ---- threads


def test_threads_of_torch(model: LoadedModel, monkeypatch) -> None:
    """Those of the engine compute with one each; the caller's, and all to come, as they did."""
    seen: dict[str, int] = {}

    def note(name: str) -> None:
        seen[name] = torch.get_num_threads()

    torch.set_num_threads(3)
    try:
        engine = Engine(model, max_sessions=1, voice_threads=2)
        think, render = engine.passes.think, engine.passes.render
        noted = {"think": think, "render": render}
        for name, work in noted.items():
            monkeypatch.setattr(
                engine.passes, name, lambda x, name=name, work=work: (note(name), work(x))[1]
            )
        session = engine.open(**SHORT)
        session.push_text("What?")
        session.commit()
        assert any(isinstance(event, api.ResponseDone) for event in session.events(timeout_s=60))
        note("caller")
        fresh = threading.Thread(target=note, args=["fresh"])
        fresh.start()
        fresh.join()
        engine.close()
    finally:
        torch.set_num_threads(1)
    assert seen == {"think": 1, "render": 1, "caller": 3, "fresh": 3}


def test_how_many_threads(model: LoadedModel) -> None:
    def chosen(wanted: int | None, width: int = 64, device: torch.device = CPU, live: bool = True):
        return voicing.num_voice_threads(wanted, width=width, device=device, live=live)

    assert chosen(None) == 0, "torch has one thread here"
    torch.set_num_threads(2)
    try:
        found = [chosen(None), chosen(None, 1024), chosen(None, 64, CUDA), chosen(None, live=False)]
    finally:
        torch.set_num_threads(1)
    assert found == [2, 0, 0, 0]
    assert chosen(5, 1024) == 5 and chosen(0) == 0 and chosen(0, live=False) == 0
    wrong: list[dict[str, Any]] = [{"wanted": -1}, {"wanted": 1, "device": CUDA}]
    for choice in (*wrong, {"wanted": 1, "live": False}):
        with pytest.raises(ValueError, match="voice_threads"):
            chosen(**choice)
    with pytest.raises(ValueError, match="voice_threads"):
        Engine(model, thread=False, voice_threads=1)


# ---- who is served


@dataclass
class Due:
    """As much of a conversation as the scheduler looks at."""

    replies: Any
    early: Any = None


def due(ahead: dict[str, tuple[float, int]], monkeypatch) -> list[Any]:
    """Conversations by name: seconds of sound that they have left, blocks rendered so far."""
    found = []
    for name, (seconds, blocks) in ahead.items():
        nothing = cast(Any, None)
        reply = Reply(name, nothing, nothing, 0, cast(Any, "a voice"), nothing, 0, 0)
        reply.blocks, reply.num_samples = blocks, round(24_000 * seconds)
        found.append(Due(type("", (), {"current": reply})))
    monkeypatch.setattr(scheduler, "ahead_s", lambda c: c.replies.current.num_samples / 24_000)
    return found


def planned(conversations: list[Any], **limits: int) -> list[list[str]]:
    work = scheduler.to_voice(conversations, block_due=lambda reply: 24, **limits)
    return [[reply.response for reply, _ in part] for part in work]


def test_who_is_rendered_with_whom(monkeypatch) -> None:
    limits = {"rows": 2, "blocks": 4}
    first = due({"a": (0.3, 0), "b": (0.1, 0), "c": (0.2, 1), "d": (0.4, 0)}, monkeypatch)
    assert planned(first, jobs=1, **limits) == [["b", "c"]], "the most starving"
    assert planned(first, jobs=2, **limits) == [["b", "c"], ["a", "d"]]
    assert planned(first, jobs=4, **limits) == [["b"], ["c"], ["a"], ["d"]], "all are busy"
    assert planned(first[:3], jobs=2, **limits) == [["b", "c"], ["a"]]
    assert planned(first, jobs=0, **limits) == []
    long = due({"a": (0.1, 4), "b": (0.2, 8), "c": (0.3, 2), "d": (0.4, 2)}, monkeypatch)
    assert planned(long, jobs=2, **limits) == [["a"], ["b"]], "four blocks are a job"
    assert planned(long[2:], jobs=1, **limits) == [["c", "d"]]
    first[1].replies.current.renders_alone = True
    assert planned(first, jobs=2, **limits) == [["b"], ["c", "a"]]
    first[1].replies.current.rendering = True
    assert planned(first, jobs=1, **limits) == [["c", "a"]]
