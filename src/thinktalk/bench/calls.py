"""Some sessions that all ask at once, in real time; what each of them got back, and when.

Every session gets 20 ms of sound every 20 ms. The end of a turn is the caller's commit, or the
moment in which the caller learns of the detector's decision.

An engine with a thread is measured on the clock: a thread pushes, and one per session takes its
events. One without is measured on the processor's clock: it steps here, every step takes as long as
the processor worked on it, and the callers cost nothing. That is how the same engine would do with
a core of its own, so it can be measured on a machine that is busy with something else.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import soxr

from thinktalk.bench.meter import Processor, forget_peak, peak_mib
from thinktalk.bench.plan import TurnEnd
from thinktalk.bench.player import Playback, play
from thinktalk.bench.question import Floats, voiced_s
from thinktalk.bench.watch import Shares, Watch
from thinktalk.live.api import AudioDelta, Event, Failed, ResponseDone, SpeechStopped, TextDelta
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
    microphone = Microphone(callers, workload.question, turn_end=turn_end)
    forget_peak(engine.model.device)
    watch, processor = Watch(engine), Processor()
    try:
        if engine.has_thread:
            start_s, late_s = on_the_clock(callers, microphone)
        else:
            start_s = late_s = 0.0
            on_the_processor(engine, callers, microphone)
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


def on_the_clock(callers: Sequence["Caller"], microphone: "Microphone") -> tuple[float, float]:
    """Returns when it began, and by how much the worst push was late."""
    threads = [threading.Thread(target=caller.listen, daemon=True) for caller in callers]
    for thread in threads:
        thread.start()
    start_s, late_s = time.perf_counter(), 0.0
    while not microphone.is_off:
        due_s = start_s + microphone.next_s
        time.sleep(max(0.0, due_s - time.perf_counter()))
        late_s = max(late_s, time.perf_counter() - due_s)
        microphone.push(time.perf_counter)
    for thread in threads:
        thread.join()
    return start_s, late_s


def on_the_processor(engine: Engine, callers: Sequence["Caller"], microphone: "Microphone") -> None:
    now_s = 0.0
    while not all(caller.is_done for caller in callers):
        while not microphone.is_off and microphone.next_s <= now_s:
            due_s = microphone.next_s
            microphone.push(lambda due_s=due_s: due_s)
        before_s = time.process_time()
        worked = engine.step()
        now_s += time.process_time() - before_s
        for caller in callers:
            while (event := caller.session.outbox.get(0)) is not None:
                caller.take(event, now_s)
        if not worked and not microphone.is_off:
            now_s = max(now_s, microphone.next_s)


class Caller:
    """A session, and what it gave until its reply was over."""

    def __init__(self, session: LiveSession):
        self.session = session
        self.is_done = False
        self.turn_end_s: float | None = None
        self.first_text_s: float | None = None
        self.done_s = 0.0
        self.chunks: list[tuple[float, int]] = []  # arrival, samples
        self.failure: str | None = None

    def listen(self) -> None:
        for event in self.session.events():
            self.take(event, time.perf_counter())
            if self.is_done:
                return

    def take(self, event: Event, now_s: float) -> None:
        match event:
            case SpeechStopped():
                self.turn_end_s = now_s
            case TextDelta() if self.first_text_s is None:
                self.first_text_s = now_s
            case AudioDelta():
                self.chunks.append((now_s, len(event.samples)))
            case ResponseDone():
                self.done_s, self.is_done = now_s, True
            case Failed():
                self.failure, self.is_done = event.message, True

    def close(self) -> None:
        """Returns when the engine has room for another session."""
        self.session.close()
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


class Microphone:
    """The question, for all callers at once; with a detector silence follows for as long as anybody
    listens. next_s: when the next chunk is complete, from the start."""

    def __init__(self, callers: Sequence[Caller], question: Floats, *, turn_end: TurnEnd):
        sound = soxr.resample(question, EAR_HZ, MICROPHONE_HZ).astype(np.float32)
        size = round(CHUNK_S * MICROPHONE_HZ)
        self._callers, self._commits = callers, turn_end == "commit"
        self._chunks = [sound[start : start + size] for start in range(0, len(sound), size)]
        self._silence = np.zeros(size, np.float32)
        self._count = 0
        self.is_off = False

    @property
    def next_s(self) -> float:
        return (self._count + 1) * CHUNK_S

    def push(self, clock: Callable[[], float]) -> None:
        """The next chunk, and after the last the caller's commit. Raises ValueError where the
        detector should long have heard the end."""
        is_question = self._count < len(self._chunks)
        chunk = self._chunks[self._count] if is_question else self._silence
        self._count += 1
        for caller in self._callers:
            caller.session.push_audio(chunk, sample_rate=MICROPHONE_HZ)
        if self._commits and self._count == len(self._chunks):
            for caller in self._callers:
                caller.turn_end_s = clock()
                caller.session.commit()
            self.is_off = True
        elif all(caller.is_done for caller in self._callers):
            self.is_off = True
        unheard = [caller for caller in self._callers if caller.turn_end_s is None]
        if unheard and (self._count - len(self._chunks)) * CHUNK_S > PATIENCE_S:
            raise ValueError(
                "the detector did not hear the end of the question; give a recording of speech "
                "with --question, or use --turn-ends commit"
            )
