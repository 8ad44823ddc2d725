"""Some sessions that all ask at once, in real time; what each of them got back, and when.

A caller pushes 20 ms of sound every 20 ms while the engine's thread works, and a thread per session
takes its events. The end of a turn is the caller's commit, or the moment in which the caller learns
of the detector's decision.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr

from thinktalk.bench.meter import Processor, forget_peak, peak_mib
from thinktalk.bench.plan import TurnEnd
from thinktalk.bench.player import Playback, play
from thinktalk.bench.question import Floats, voiced_s
from thinktalk.bench.watch import Shares, Watch
from thinktalk.live.api import AudioDelta, Failed, ResponseDone, SpeechStopped, TextDelta
from thinktalk.live.engine import Engine
from thinktalk.live.session import LiveSession
from thinktalk.media.mel import EAR_HZ, VOICE_HZ
from thinktalk.options import ServerVad, Settings

MICROPHONE_HZ = 24_000  # what browsers and OpenAI's clients send
CHUNK_S = 0.02
PATIENCE_S = 3.0  # of silence in which the detector must have ended the turn


@dataclass(frozen=True)
class Workload:
    """What every session hears, float32 at 16 kHz, and how much it says. system: None is the
    official prompt."""

    question: Floats
    reply_tokens: int
    reply_ids: int
    seed: int = 0
    system: str | None = None


@dataclass(frozen=True)
class Call:
    """Seconds from the end of the turn: to the first text, to the first sound, to the end of the
    last sound's arrival. after_voice_s: from the last voiced sample of the question to the first
    sound. rtf: end_s over the duration of the sound, so it includes listening and thinking."""

    first_text_s: float
    first_audio_s: float
    after_voice_s: float
    end_s: float
    rtf: float
    playback: Playback


@dataclass(frozen=True)
class Calls:
    """wall_s: from the first push to the last sound; in it cpu_s: processor time of this process,
    callers included, and others_cores: how many cores other processes kept busy. late_s: how late
    the most belated push was. Much of these two means that the machine was not free to measure."""

    sessions: int
    turn_end: TurnEnd
    calls: list[Call]
    shares: Shares
    wall_s: float
    cpu_s: float
    others_cores: float | None
    late_s: float
    peak_mib: float


def measure(engine: Engine, workload: Workload, *, sessions: int, turn_end: TurnEnd) -> Calls:
    """Raises ValueError where a session fails or its detector does not hear the question."""
    settings = Settings(
        voice=engine.voices[0],
        system=workload.system,
        turn_detection=ServerVad() if turn_end == "detector" else None,
        max_text_tokens=workload.reply_tokens,
        max_codec_ids=workload.reply_ids,
        seed=workload.seed,
    )
    callers = [Caller(engine.open(settings)) for _ in range(sessions)]
    forget_peak(engine.model.device)
    watch, processor = Watch(engine), Processor()
    try:
        start_s, late_s = push(callers, workload.question, turn_end=turn_end)
        for caller in callers:
            caller.thread.join()
        cpu_s, others_cores = processor.own_s(), processor.others_cores()
    finally:
        shares = watch.stop()
        for caller in callers:
            caller.close()
    voice_end_s = start_s + voiced_s(workload.question)
    return Calls(
        sessions,
        turn_end,
        [caller.call(voice_end_s) for caller in callers],
        shares,
        wall_s=max(arrival_s for caller in callers for arrival_s, _ in caller.chunks) - start_s,
        cpu_s=cpu_s,
        others_cores=others_cores,
        late_s=late_s,
        peak_mib=peak_mib(engine.model.device),
    )


class Caller:
    """A session, and the thread that takes its events until the reply is over."""

    def __init__(self, session: LiveSession):
        self.session = session
        self.turn_end_s: float | None = None
        self.first_text_s: float | None = None
        self.done_s = 0.0
        self.chunks: list[tuple[float, int]] = []  # arrival, samples
        self.failure: str | None = None
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        for event in self.session.events():
            now_s = time.perf_counter()
            match event:
                case SpeechStopped():
                    self.turn_end_s = now_s
                case TextDelta() if self.first_text_s is None:
                    self.first_text_s = now_s
                case AudioDelta():
                    self.chunks.append((now_s, len(event.samples)))
                case ResponseDone():
                    self.done_s = now_s
                    return
                case Failed():
                    self.failure = event.message
                    return

    def close(self) -> None:
        """Returns when the engine has room for another session."""
        self.session.close()
        self.thread.join()
        for _ in self.session.events():
            pass

    def call(self, voice_end_s: float) -> Call:
        if self.failure is not None or self.turn_end_s is None:
            raise ValueError(f"a session failed: {self.failure}")
        playback = play(self.chunks, sample_rate=VOICE_HZ)
        end_s = self.chunks[-1][0] - self.turn_end_s
        return Call(
            first_text_s=(self.first_text_s or self.done_s) - self.turn_end_s,
            first_audio_s=playback.start_s - self.turn_end_s,
            after_voice_s=playback.start_s - voice_end_s,
            end_s=end_s,
            rtf=end_s / playback.duration_s,
            playback=playback,
        )


def push(callers: Sequence[Caller], question: Floats, *, turn_end: TurnEnd) -> tuple[float, float]:
    """Plays the question into all sessions in real time, and with a detector silence after it for
    as long as they listen; returns when that began, and by how much the worst push was late."""
    sound = soxr.resample(question, EAR_HZ, MICROPHONE_HZ).astype(np.float32)
    size = round(CHUNK_S * MICROPHONE_HZ)
    silence = np.zeros(size, np.float32)
    start_s, late_s, number = time.perf_counter(), 0.0, 0
    while number * size < len(sound) or turn_end == "detector":
        if all(not caller.thread.is_alive() for caller in callers):
            break
        chunk = sound[number * size : (number + 1) * size]
        number += 1
        due_s = start_s + number * CHUNK_S
        time.sleep(max(0.0, due_s - time.perf_counter()))
        late_s = max(late_s, time.perf_counter() - due_s)
        for caller in callers:
            caller.session.push_audio(chunk if len(chunk) else silence, sample_rate=MICROPHONE_HZ)
        waited_s = number * CHUNK_S - len(sound) / MICROPHONE_HZ
        if waited_s > PATIENCE_S and any(caller.turn_end_s is None for caller in callers):
            raise ValueError(
                "the detector did not hear the end of the question; give a recording of speech "
                "with --question, or use --turn-end commit"
            )
    if turn_end == "commit":
        for caller in callers:
            caller.turn_end_s = time.perf_counter()
            caller.session.commit()
    return start_s, late_s
