"""The voice beside the engine's thread: the same sound, in order, and no trace of what is over.

Most tests drive the jobs by hand, so that what happens while one is being rendered happens for
sure; the others use real threads.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_speech import VAD, interjection, live
from live_stage import SHORT, Said, Stage, in_order, load, names, of_kind, said_alone

import thinktalk
from thinktalk.live import api
from thinktalk.live.engine import Engine
from thinktalk.live.session import LiveSession
from thinktalk.live.voicing import VoiceJob, VoiceWorkers
from thinktalk.weights import LoadedModel

LIMITS = {**SHORT, "max_codec_ids": 40}  # groups of 1, 1 and 2 blocks of 12, the last one in part
TOLERANCE = 1e-4  # of the largest sample: kernels round otherwise for more rows
WORDS = ["Hello", "What is this?", "Tell me more about it, please.", "Why?", "Oh.", "And then?"]


class ByHand(VoiceWorkers):
    """Jobs are rendered when a test says so."""

    def __init__(self, engine: Engine, count: int):
        super().__init__(0, render=engine.passes.render, wake=engine.wake)
        self.waiting: list[VoiceJob] = []
        self._count = count

    @property
    def num_idle(self) -> int:
        return self._count - self.num_busy

    def submit(self, job: VoiceJob, *, here: bool = False) -> None:
        self.num_busy += 1
        self.waiting.append(job)

    def work(self, which: int = 0) -> None:
        """Renders one of the jobs that wait, the oldest unless told otherwise."""
        self._finish(self.waiting.pop(which))


@pytest.fixture
def model(tiny_checkpoint: Callable[[str], Path]) -> LoadedModel:
    return load(tiny_checkpoint("7b"))


def by_hand(model: LoadedModel, *, sessions: int, threads: int = 2) -> tuple[Stage, ByHand]:
    stage = Stage(model, max_sessions=sessions)
    stage.engine._voices = workers = ByHand(stage.engine, threads)
    return stage, workers


def ask(session: LiveSession, n: int) -> None:
    session.push_text(WORDS[n])
    session.commit()


def finish(stage: Stage, workers: ByHand) -> None:
    """Until there is nothing more to do, the youngest jobs first."""
    stage.run()
    while workers.waiting:
        workers.work(-1)
        stage.run()


def same(said: Said, model: LoadedModel, n: int) -> None:
    """As a session says it that is alone, in an engine without threads."""
    expected = said_alone(model.folder, ask, n, **LIMITS)
    assert said.ids == expected.ids and said.text == expected.text
    assert said.done.audio_ms == expected.done.audio_ms == 800
    assert said.wave.shape == expected.wave.shape
    error = np.abs(said.wave - expected.wave).max() / np.abs(expected.wave).max()
    assert error <= TOLERANCE, error


# ---- real threads


def test_threads_say_what_generate_says(model: LoadedModel) -> None:
    """More sessions than threads; ids, text, sound and the order of events."""
    engine = thinktalk.live(model, max_sessions=len(WORDS), voice_threads=2)
    sessions = [engine.open(seed=n, **LIMITS) for n in range(len(WORDS))]
    for n, session in enumerate(sessions):
        ask(session, n)
    for n, session in enumerate(sessions):
        events = []
        for event in session.events(timeout_s=60):
            events.append(event)
            if isinstance(event, api.ResponseDone):
                break
        assert names(events)[:2] == ["TurnCommitted", "ResponseStarted"] and in_order(events)
        waves = [event.samples for event in of_kind(events, api.AudioDelta)]
        assert len(waves) == 3, "a group of blocks each"
        texts = "".join(event.text for event in of_kind(events, api.TextDelta))
        expected = said_alone(model.folder, ask, n, **LIMITS)
        assert (texts, events[-1].text) == (expected.text, expected.text)
        said = Said(texts, np.concatenate(waves), events[-1], *expected.ids)
        same(said, model, n)
        if n == 0:
            answer = thinktalk.generate(model, [WORDS[0]], **LIMITS)
            assert answer.audio.shape == said.wave.shape
            error = np.abs(answer.audio - said.wave).max() / np.abs(answer.audio).max()
            assert error <= TOLERANCE, error
    assert engine.stats()["voice_jobs"] == 0
    assert engine.counters["voice_blocks"] == 3 * len(WORDS)
    engine.close()
    assert not any(thread.name.startswith("thinktalk") for thread in threading.enumerate())


def test_a_close_waits_for_no_more_than_the_job(model: LoadedModel, monkeypatch) -> None:
    engine = Engine(model, max_sessions=1, voice_threads=1)
    began, goes_on, rendered = threading.Event(), threading.Event(), []

    def slowly(job: VoiceJob) -> None:
        if job.replies[0].blocks < 2:
            return render(job)
        began.set()
        goes_on.wait()
        render(job)
        rendered.append(job)

    render = engine.passes.render
    monkeypatch.setattr(engine.passes, "render", slowly)
    session = engine.open(**LIMITS)
    ask(session, 0)
    began.wait()
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert engine._thread is not None
    engine._thread.join()
    goes_on.set()
    closing.join()
    events = list(session.events())
    assert len(rendered) == 1 and not of_kind(events, api.AudioDelta)
    assert names(events)[-3:] == ["ResponseDone", "Truncated", "Closed"]
    assert engine.stats()["sessions"] == 0
    assert not any(thread.name.startswith("thinktalk") for thread in threading.enumerate())


# ---- what happens while a job is being rendered


def test_ids_are_chosen_meanwhile(model: LoadedModel) -> None:
    """One job of a reply at a time; the reply is over when its sound is."""
    stage, workers = by_hand(model, sessions=1)
    session = stage.open(seed=1, **LIMITS)
    ask(session, 1)
    stage.run()
    reply = stage.of(session).replies.current
    assert reply is not None and len(reply.codec_ids) == 40 and reply.codec_done
    assert len(workers.waiting) == 1 and stage.engine.stats()["voice_jobs"] == 1
    events = stage.so_far(session)
    assert not of_kind(events, api.AudioDelta) and not of_kind(events, api.ResponseDone)
    for blocks in (1, 2, 4):
        workers.work()
        assert reply.blocks < blocks, "the engine's thread takes it"
        stage.run()
        assert reply.blocks == blocks
        told = stage.so_far(session)
        expected = ["AudioDelta"] if blocks < 4 else ["AudioDelta", "ResponseDone"]
        assert names(told) == expected
        events += told
    [said] = stage.replies(events)
    same(said, model, 1)
    stage.close()


def test_jobs_are_spread_and_come_back_in_any_order(model: LoadedModel) -> None:
    stage, workers = by_hand(model, sessions=3)
    sessions = [stage.open(seed=n, **LIMITS) for n in range(3)]
    for n, session in enumerate(sessions):
        ask(session, n)
    stage.run()
    assert len(workers.waiting) == 2, "both are busy"
    finish(stage, workers)
    for n, session in enumerate(sessions):
        same(stage.reply(session), model, n)
    stage.close()


ENDS: dict[str, Callable[[Stage, LiveSession], Any]] = {
    "cancelled": lambda stage, session: session.cancel(),
    "closed": lambda stage, session: session.close(),
    "in a full cache": lambda stage, session: stage.of(session).give_way(),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "with another"])
def test_over_while_it_is_rendered(model: LoadedModel, end: str, beside: bool) -> None:
    """Nothing more is heard of it; its slot serves another reply at once, which the job that comes
    back does not disturb; nor who shares the job."""
    stage, workers = by_hand(model, sessions=3, threads=1)
    who, other = stage.open(seed=0, **LIMITS), stage.open(seed=1, **LIMITS)
    for n, session in enumerate((who, other)[: 1 + beside]):
        ask(session, n)
    stage.run()
    assert [len(job.replies) for job in workers.waiting] == [1 + beside]
    gone = workers.waiting[0].replies[0]
    ENDS[end](stage, who)
    stage.run()
    events = stage.so_far(who)
    assert of_kind(events, api.ResponseDone) and not of_kind(events, api.AudioDelta)
    if end != "closed":
        who.close()
    fresh = stage.open(seed=2, **LIMITS)
    ask(fresh, 2)
    stage.run()
    reply = stage.of(fresh).replies.current
    slot = gone.slot
    assert reply is not None and slot is not None and reply.slot == slot and gone.ended
    before = stage.engine.passes.voices.rows([slot])
    workers.work()
    stage.engine._voice([])
    after = stage.engine.passes.voices.rows([slot])
    assert int(after.seed) == 2 and not int(after.blocks) and torch.equal(before.past, after.past)
    finish(stage, workers)
    same(stage.reply(fresh), model, 2)
    if beside:
        same(stage.reply(other), model, 1)
    assert names(stage.so_far(who)) in ([], ["Closed"])
    assert stage.engine.stats()["voice_jobs"] == 0
    stage.close()


def test_the_user_cuts_in_while_it_is_rendered(model: LoadedModel) -> None:
    stage, workers = by_hand(model, sessions=1)
    session = stage.open(turn_detection=VAD, max_text_tokens=6, max_codec_ids=40)
    ask(session, 0)
    stage.run()
    assert len(workers.waiting) == 1
    stage.so_far(session)
    events = live(stage, session, interjection()[:8000])
    assert names(events) == ["SpeechStarted", "ResponseDone", "Truncated"]
    [done] = of_kind(events, api.ResponseDone)
    assert (done.status, done.audio_ms) == ("cancelled", 0)
    workers.work()
    stage.run()
    assert stage.so_far(session) == [] and not workers.num_busy
    stage.close()


def test_saved_and_forked_while_it_is_rendered(model: LoadedModel, tmp_path: Path) -> None:
    """A save is refused, a fork leaves the reply behind, and the reply is not disturbed."""
    stage, workers = by_hand(model, sessions=2)
    session = stage.open(seed=3, **LIMITS)
    ask(session, 3)
    stage.run()
    stage.so_far(session)
    session.save(tmp_path / "early")
    twin = session.fork()
    stage.run()
    [failed] = stage.so_far(session)
    assert isinstance(failed, api.Failed) and failed.code == "not_saved"
    finish(stage, workers)
    [*_, done] = stage.so_far(session)
    assert isinstance(done, api.ResponseDone) and done.audio_ms == 800
    session.save(tmp_path / "late")
    stage.run()
    session.close()
    stage.run()
    for who in (twin, stage.engine.resume(tmp_path / "late")):
        ask(who, 4)
        finish(stage, workers)
        [said] = stage.replies(stage.so_far(who))
        assert said.done.status == "incomplete" and len(said.wave) == 40 * 480
    stage.close()


# ---- failures


def test_a_failing_job_ends_its_session(model: LoadedModel, monkeypatch, caplog) -> None:
    """Those who shared it are rendered again, each alone."""
    caplog.set_level(logging.CRITICAL)
    stage, workers = by_hand(model, sessions=3, threads=1)
    render = workers._render

    def fails(job: VoiceJob) -> None:
        render(job)
        if 1 in job.state.seed.tolist():
            raise RuntimeError("out of memory")

    monkeypatch.setattr(workers, "_render", fails)
    sessions = [stage.open(seed=n, **LIMITS) for n in range(3)]
    for n, session in enumerate(sessions):
        ask(session, n)
    stage.run()
    assert len(workers.waiting[0].replies) == 2
    finish(stage, workers)
    events = stage.so_far(sessions[1])
    assert names(events)[-2:] == ["Failed", "Closed"] and not of_kind(events, api.AudioDelta)
    [failed] = of_kind(events, api.Failed)
    assert failed.fatal and failed.code == "server_error" and "out of memory" in failed.message
    for n in (0, 2):
        same(stage.reply(sessions[n]), model, n)
    stage.close()


def test_who_speaks_alone_begins_in_the_engines_thread(model: LoadedModel, monkeypatch) -> None:
    """One thread at work is quicker than two that hinder each other; with others it is not."""
    engine = Engine(model, max_sessions=2, voice_threads=1)
    render, where = engine.passes.render, []

    def noted(job: VoiceJob) -> None:
        where.append((int(job.state.blocks[0]), threading.current_thread().name))
        render(job)

    monkeypatch.setattr(engine.passes, "render", noted)
    session = engine.open(**LIMITS)
    ask(session, 0)
    assert next(e for e in session.events() if isinstance(e, api.ResponseDone)).audio_ms == 800
    assert where == [(0, "thinktalk"), (1, "thinktalk"), (2, "thinktalk-voice-0")]
    engine.close()


def test_who_speaks_beside_others_begins_in_any_thread(model: LoadedModel) -> None:
    stage = Stage(model, max_sessions=2)
    asked = []
    stage.engine._voices.submit = lambda job, *, here=False: asked.append(here)
    for n in (0, 1):
        ask(stage.open(seed=n, **LIMITS), n)
    stage.run()
    assert asked == [False]  # for both


def test_a_failure_in_a_thread(model: LoadedModel, monkeypatch, caplog) -> None:
    caplog.set_level(logging.CRITICAL)
    engine = Engine(model, max_sessions=1, voice_threads=2)
    render = engine.passes.render

    def fail_later(job: VoiceJob) -> None:
        assert job.replies[0].blocks < 2, "no room"
        render(job)

    monkeypatch.setattr(engine.passes, "render", fail_later)
    session = engine.open(**LIMITS)
    ask(session, 0)
    events = list(session.events())
    assert names(events)[-2:] == ["Failed", "Closed"]
    assert "voice" in of_kind(events, api.Failed)[0].message
    monkeypatch.setattr(engine.passes, "render", render)
    session = engine.open(**LIMITS)
    ask(session, 0)
    assert next(e for e in session.events() if isinstance(e, api.ResponseDone)).audio_ms == 800
    engine.close()


def test_a_failure_of_what_is_over_is_nobodys(model: LoadedModel, monkeypatch, caplog) -> None:
    caplog.set_level(logging.CRITICAL)
    stage, workers = by_hand(model, sessions=1)
    session = stage.open(seed=5, **LIMITS)
    ask(session, 0)
    stage.run()
    session.cancel()
    stage.run()
    stage.so_far(session)
    monkeypatch.setattr(workers, "_render", lambda job: 1 / 0)
    workers.work()
    stage.run()
    assert stage.so_far(session) == []
    stage.close()
