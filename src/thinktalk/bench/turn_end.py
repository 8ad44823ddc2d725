"""What is left to do when a turn ends, for a long turn and a short one with the same remainder.

All that can be done while the user speaks is done before the clock starts: the engine works by
hand until it is idle. Then the turn is committed, and the clock runs until the first text id is
about to be chosen.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from thinktalk.bench.question import made_up
from thinktalk.live.engine import Engine
from thinktalk.media.mel import EAR_HZ
from thinktalk.options import Settings
from thinktalk.weights import LoadedModel

LENGTHS_S = (2.0, 120.0)
REMAINDER_S = 1.0  # the sound of the window that is open when the turn ends
ROUNDS = 5


@dataclass(frozen=True)
class Turn:
    """seconds: from its end to the first decode step, and cpu_s: of the processor for it, medians
    of the rounds; length_s: in front of the remainder; positions: of the whole prompt then."""

    length_s: float
    seconds: float
    cpu_s: float
    positions: int


@dataclass(frozen=True)
class TurnEndWork:
    """ratio, cpu_ratio: of the last turn's seconds to the first's."""

    remainder_s: float
    turns: list[Turn]
    ratio: float
    cpu_ratio: float


def measure_turn_end(
    model: LoadedModel, *, lengths_s: Sequence[float] = LENGTHS_S, rounds: int = ROUNDS
) -> TurnEndWork:
    """The rounds alternate between the lengths."""
    context = model.config.thinker_config.text_config.max_position_embeddings
    engine = Engine(model, max_sessions=1, cache_positions=context, thread=False)
    found: dict[float, list[Turn]] = {length: [] for length in lengths_s}
    for number in range(rounds + 1):  # the first round is for warming up
        for length in lengths_s:
            turn = work_at_end(engine, length_s=length)
            if number:
                found[length].append(turn)
    engine.close()
    turns = [
        replace(
            ones[0],
            seconds=statistics.median(turn.seconds for turn in ones),
            cpu_s=statistics.median(turn.cpu_s for turn in ones),
        )
        for ones in found.values()
    ]
    first, last = turns[0], turns[-1]
    ratios = last.seconds / first.seconds, last.cpu_s / first.cpu_s
    return TurnEndWork(REMAINDER_S, turns, *ratios)


def work_at_end(engine: Engine, *, length_s: float) -> Turn:
    """From the commit of one turn to its first text id."""
    sound = made_up(length_s + REMAINDER_S)
    began: list[tuple[float, float]] = []
    think = engine.passes.think

    def first_thought(work: Any) -> Any:
        began.append((time.perf_counter(), time.process_time()))
        return think(work)

    session = engine.open(Settings(voice=engine.voices[0], max_text_tokens=2, max_codec_ids=2))
    for start in range(0, len(sound), 2 * EAR_HZ):
        session.push_audio(sound[start : start + 2 * EAR_HZ], sample_rate=EAR_HZ)
        while engine.step():
            pass
    engine.passes.think = first_thought
    ended_s, ended_cpu_s = time.perf_counter(), time.process_time()
    session.commit()
    while not began:
        engine.step()
    engine.passes.think = think
    count = engine.conversations[session.id].memory.length
    session.close()
    while engine.step():
        pass
    (began_s, began_cpu_s), *_ = began
    return Turn(length_s, began_s - ended_s, began_cpu_s - ended_cpu_s, count)
