"""Where the time of an engine goes, seen from outside: its passes are wrapped."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from thinktalk.live.engine import Engine
from thinktalk.live.passes import Chosen, Speaker

STAGES = ("ear", "encode", "prefill", "think", "speak", "dit", "vocoder", "rest")


class Watch:
    """Measures an engine until `stop`. Stages: ear (mel and detector), encode (sound and pictures),
    prefill (of both caches), think (one text id a row), speak (one codec id a row), dit, vocoder,
    and the rest of every tick. A stage's time is without the stages inside it. What other threads
    render counts as well, so that together the stages may take longer than the clock ran.

    Times are those of the clock on which the engine is measured (see calls.py); on CUDA they are
    those of the device's queue, so the host is not held up.
    """

    def __init__(self, engine: Engine):
        self.tokens: Counter[str] = Counter()  # ids that were chosen, by stage
        self._device = engine.model.device
        self._clock = time.perf_counter if engine.has_thread else time.process_time
        self._spans: list[tuple[str, str | None, Any, Any]] = []
        self._inside: defaultdict[int, list[str]] = defaultdict(list)  # of every thread
        self._before: list[tuple[Any, str, Any]] = []  # what was wrapped; None: the class's own
        passes, token2wav = engine.passes, engine.model.omni.token2wav
        self._wrap(engine, "step", "rest")
        self._wrap(engine, "intake", "ear")
        self._wrap(passes, "encode", "encode")
        self._wrap(passes, "prefill", "prefill")
        self._wrap(passes, "tell", "prefill")
        self._wrap(passes, "think", "think")
        self._wrap(passes, "speak", "speak")
        for name in ("voice_job", "render", "voiced"):
            self._wrap(passes, name, "rest")
        self._wrap(token2wav, "render", "dit")
        self._wrap(token2wav, "vocode", "vocoder")

    def stop(self) -> "Shares":
        """Takes the wraps off, as soon as the tick in progress is over, and what is rendered."""
        while any(list(self._inside.values())):
            time.sleep(0.001)
        for owner, name, before in self._before:
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        calls: dict[str, int] = dict.fromkeys(STAGES, 0)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for stage, outer, start, stop in self._spans:
            if self._device.type == "cuda":
                spent = start.elapsed_time(stop) / 1000
            else:
                spent = stop - start
            seconds[stage] += spent
            calls[stage] += 1
            if outer is not None:
                seconds[outer] -= spent
        return Shares(seconds, calls, dict(self.tokens))

    def _wrap(self, owner: Any, name: str, stage: str) -> None:
        inner = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            inside = self._inside[threading.get_ident()]
            outer = inside[-1] if inside else None
            inside.append(stage)
            start = self._now()
            try:
                result = inner(*args, **kwargs)
            finally:
                inside.pop()
            self._spans.append((stage, outer, start, self._now()))
            if isinstance(result, Chosen):
                self.tokens[stage] += len(result.replies)
            return result

        self._before.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, measured)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class Shares:
    """seconds and calls by stage; tokens: ids chosen by `think` and `speak`."""

    seconds: dict[str, float]
    calls: dict[str, int]
    tokens: dict[str, int]


def endless(engine: Engine) -> None:
    """From now on neither text nor speech ends by itself: every reply is as long as it may be."""
    passes, config = engine.passes, engine.model.config
    letter = engine.kit.tokenizer.encode("a")[0]
    stop = config.thinker_config.eos_token_id
    passes.think = _without(passes.think, stop_ids=(stop,), instead=letter)
    passes.speak = _without(passes.speak, stop_ids=config.talker_config.stop_ids, instead=0)


def _without(
    choose: Callable[..., Chosen | None], *, stop_ids: Sequence[int], instead: int
) -> Callable[..., Chosen | None]:
    def chosen(work: Sequence[Speaker]) -> Chosen | None:
        result = choose(work)
        if result is None:
            return None
        stops = torch.tensor(stop_ids, device=result.ids.device)
        ids = result.ids.masked_fill(torch.isin(result.ids, stops), instead)
        return replace(result, ids=ids)

    return chosen
