"""Chunks of sound as they arrived in, what a listener heard of them out. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

CONTINUOUS_S = 0.1  # a reply with less starvation counts as continuous (as in vLLM-Omni's metrics)


@dataclass(frozen=True)
class Playback:
    """start_s: when the first sample was played, at the arrival of the first chunk that has any.
    end_s: when the last one was over. duration_s: of the sound. underrun_s: how long the player had
    nothing to play in between; it is also how long it should have waited before it began, to play
    without a gap. stalls: how many gaps those were."""

    start_s: float
    end_s: float
    duration_s: float
    underrun_s: float
    stalls: int

    @property
    def is_continuous(self) -> bool:
        return self.underrun_s <= CONTINUOUS_S


def play(chunks: Sequence[tuple[float, int]], *, sample_rate: int) -> Playback:
    """chunks: (arrival in seconds, samples), in order of arrival. The player begins at once and
    goes on as soon as it can. Raises ValueError if there is no sound at all."""
    chunks = [(arrival_s, count) for arrival_s, count in chunks if count > 0]
    if not chunks:
        raise ValueError("no sound arrived, so nothing could be played")
    start_s = played_until_s = chunks[0][0]
    duration_s = underrun_s = 0.0
    stalls = 0
    for arrival_s, count in chunks:
        if arrival_s > played_until_s:
            underrun_s += arrival_s - played_until_s
            stalls += 1
            played_until_s = arrival_s
        duration_s += count / sample_rate
        played_until_s += count / sample_rate
    return Playback(start_s, played_until_s, duration_s, underrun_s, stalls)
