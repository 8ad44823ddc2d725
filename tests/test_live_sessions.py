"""Sessions as a whole: opened, forked, saved, resumed elsewhere, closed; many of them at once."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_speech import VAD, live, question
from live_stage import SHORT, Said, Stage, load, names, of_kind, push
from omni_cases import sound

from thinktalk.live import api, prefixes
from thinktalk.live.engine import Engine
from thinktalk.live.session import LiveSession
from thinktalk.media import prompt

CONTINUE = """
import hashlib, json, sys
import numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from live_stage import Stage, load, push
from omni_cases import sound
from test_live_sessions import finish
from pathlib import Path
stage = Stage(load(Path(sys.argv[2])))
print(json.dumps(finish(stage, stage.engine.resume(sys.argv[3]))))
"""
PICTURE = np.random.default_rng(0).integers(0, 255, (84, 56, 3), np.uint8)


def talk(stage: Stage, **settings: Any) -> LiveSession:
    """A conversation in the middle of its second turn: a window and a half of sound with frames."""
    session = stage.open(seed=4, camera_fps=2.0, **settings)
    session.push_text("Look at this.")
    session.push_image(PICTURE)
    session.commit()
    stage.told(session)
    for start in range(3):
        session.push_image(PICTURE[:, ::-1] // (start + 1), time_s=float(start))
        push(session, sound(3.0)[16_000 * start : 16_000 * (start + 1)])
    stage.run()
    return session


def finish(stage: Stage, session: LiveSession) -> Any:
    """The rest of that turn, its reply and one more, to the bit, as JSON knows it."""
    push(session, sound(0.9))
    session.push_text("Well?")
    session.commit()
    first = stage.reply(session)
    session.push_text("And now?")
    session.commit()
    return [said_bits(first), said_bits(stage.reply(session))]


def said_bits(said: Said) -> list[Any]:
    return [said.text, said.text_ids, said.codec_ids, hashlib.md5(said.wave.tobytes()).hexdigest()]


# ---- the same past


def test_a_fork_goes_on_alike_and_alone(stage: Stage) -> None:
    """In the middle of a turn, with camera and words that wait; both continue to the bit."""
    session = talk(stage)
    session.push_text("By the way, ")
    twin = session.fork()
    stage.run()
    assert twin.id != session.id and twin.settings == session.settings
    assert finish(stage, session) == finish(stage, twin)
    session.close()
    stage.run()
    stage.check(twin)
    assert finish(stage, twin)


def test_a_fork_leaves_the_reply_behind(stage: Stage) -> None:
    """The reply goes on in the parent only, as if nothing had been; the twin can be asked."""
    replies = []
    for forks in (False, True):
        session = stage.open(max_codec_ids=26)
        session.push_text("What?")
        session.commit()
        stage.run(6)
        if forks:
            twin = session.fork()
            assert stage.replies(stage.told(twin)) == []
            assert [item.role for item in stage.memory(twin).items] == ["system", "user"]
            stage.check(twin)
            twin.respond()
            events = stage.told(twin)
            assert names(events)[0] == "ResponseStarted" and len(stage.replies(events)) == 1
        replies.append(stage.reply(session))
    assert said_bits(replies[0]) == said_bits(replies[1])


def test_a_fork_in_the_middle_of_speech(stage: Stage) -> None:
    session = stage.open(turn_detection=VAD)
    live(stage, session, question()[:20_000])
    twin = session.fork()
    waves = []
    for who in (session, twin):
        [said] = stage.replies(live(stage, who, question()[20_000:]))
        waves.append(said_bits(said))
    assert waves[0] == waves[1]


def test_the_parent_may_close_at_once(stage: Stage) -> None:
    session = talk(stage)
    expected = finish(stage, session.fork())
    twin = session.fork()
    session.close()
    assert finish(stage, twin) == expected
    with pytest.raises(api.SessionClosedError):
        session.fork()
    assert len(stage.engine.sessions) == 2, "a fork that fails leaves nothing"


# ---- on disk


def test_resumed_in_another_process(stage: Stage, tmp_path: Path) -> None:
    """The rest of the conversation is the same to the bit, here and there."""
    session = talk(stage)
    session.save(tmp_path / "saved")
    assert names(stage.told(session)) == ["Saved"]
    there = subprocess.run(
        [sys.executable, "-c", CONTINUE, str(Path(__file__).parent), str(stage.model.folder),
         str(tmp_path / "saved")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    here = finish(stage, stage.engine.resume(tmp_path / "saved"))
    assert json.loads(there.stdout) == here == finish(stage, session)


def test_what_is_saved_is_all_of_it(stage: Stage, tmp_path: Path) -> None:
    """Settings, items, what waits to be prefilled, and the ear in the middle of speech."""
    session = stage.open(turn_detection=VAD, seed=7, system="Be kind.", max_text_tokens=5)
    live(stage, session, question()[:30_000])
    session.push_audio(question()[30_000:31_000], sample_rate=16_000)
    session.save(tmp_path)
    session.close()
    assert names(stage.told(session)) == ["Saved", "Closed"], "before it is closed"
    twin = stage.engine.resume(str(tmp_path))
    stage.run()
    stage.check(twin)
    assert twin.settings == session.settings
    fresh = stage.open(turn_detection=VAD, seed=7, system="Be kind.", max_text_tokens=5)
    live(stage, fresh, question()[:31_000])
    ends = [stage.replies(live(stage, who, question()[31_000:])) for who in (twin, fresh)]
    assert said_bits(ends[0][0]) == said_bits(ends[1][0])


def test_what_cannot_be_saved_or_resumed(
    stage: Stage, tmp_path: Path, tiny_checkpoint: Callable[[str], Path]
) -> None:
    session = stage.open()
    session.respond()
    stage.run(1)
    session.save(tmp_path / "a")
    assert [f.code for f in of_kind(stage.told(session), api.Failed)] == ["not_saved"]
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    session.save(tmp_path / "file")
    stage.failure(session, "not_saved")
    session.save(tmp_path / "b")
    stage.told(session)
    with pytest.raises(ValueError, match="holds no saved session"):
        stage.engine.resume(tmp_path)
    other = Stage(load(tiny_checkpoint("3b")))
    with pytest.raises(ValueError, match="saved with another model"):
        other.engine.resume(tmp_path / "b")
    other.close()
    facts = tmp_path / "b" / "session.json"
    facts.write_text(facts.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(ValueError, match="saved in format 0"):
        stage.engine.resume(tmp_path / "b")


# ---- the end


@pytest.mark.parametrize("ticks", [0, 1, 3, 20])
def test_close_at_any_stage(stage: Stage, ticks: int) -> None:
    """The last event is Closed; nothing is left of the session (the fixture counts the blocks)."""
    session = stage.open(max_codec_ids=60)
    push(session, sound(2.5))
    session.commit(item="turn")
    session.transcribe("turn")
    stage.run(ticks)
    session.push_text("too late")
    session.close()
    session.close()
    events = stage.told(session)
    assert isinstance(events[-1], api.Closed) and len(of_kind(events, api.Closed)) == 1
    done = of_kind(events, api.ResponseDone)
    assert [d.reason for d in done] == (["closed"] if ticks else [])
    assert stage.told(session) == [] and not stage.engine.conversations
    with pytest.raises(api.SessionClosedError, match="is closed; open a new session"):
        session.push_audio(sound(0.1))
    with pytest.raises(api.SessionClosedError):
        session.push_image(PICTURE)


def test_the_engine_is_full(stage: Stage) -> None:
    sessions = [stage.open() for _ in range(4)]
    with pytest.raises(api.EngineFullError, match="holds 4 sessions already"):
        stage.open()
    with pytest.raises(api.EngineFullError):
        sessions[0].fork()
    stage.run()
    sessions[2].close()
    stage.run()
    stage.open()


def test_a_closed_engine(stage: Stage) -> None:
    session = stage.open()
    stage.engine.close()
    assert isinstance(stage.told(session)[-1], api.Closed)
    with pytest.raises(api.SessionClosedError, match="the engine is closed"):
        stage.engine.open()


# ---- what they share


def test_equal_system_prompts_are_computed_once(stage: Stage, monkeypatch) -> None:
    counters = stage.engine.counters
    first = stage.open(system="Be brief.")
    stage.run()
    positions = counters["prefill_positions"]
    assert positions == stage.memory(first).length > 0
    second = stage.open(system="Be brief.")
    other = stage.open(system="Be long.")
    silent = stage.open(system="Be brief.", speak=False)
    stage.run()
    assert counters["prefill_positions"] == 3 * positions - 1, "a letter less; no Talker's cache"
    assert stage.engine.stats()["prefixes_used"] == 1
    blocks = [stage.memory(session).thinker_row.blocks for session in (first, second)]
    assert blocks[0] == blocks[1] != stage.memory(other).thinker_row.blocks
    replies = []
    for session in (first, second):
        session.push_text("Hi.")
        session.commit()
        replies.append(said_bits(stage.reply(session)))
        stage.check(session)
    assert replies[0] == replies[1]
    silent.close()


def test_few_prefixes_are_kept(stage: Stage, monkeypatch) -> None:
    monkeypatch.setattr(prefixes, "MAX_PREFIXES", 2)
    for number in (1, 2, 3, 2, 1):
        stage.open(system=f"Number {number}.").close()
        session = stage.open(system=f"Number {number}.")
        stage.run()
        session.close()
        stage.run()
    assert len(stage.engine.prefixes._memories) == 2
    assert stage.engine.stats()["prefixes_used"] == 1, "only the second 2 was still there"


def test_files_are_read_beside_the_engine(stage: Stage, monkeypatch) -> None:
    """A session's commands wait for a file in their order; the others go on meanwhile."""
    gate, load_audio = threading.Event(), prompt.load_audio

    def slow(source: Any, **options: Any) -> np.ndarray:
        gate.wait(30)
        return load_audio(source, **options)

    monkeypatch.setattr(prompt, "load_audio", slow)
    session, other = stage.open(), stage.open()
    session.push_text("First ")
    session.push_media(sound(0.3), kind="audio")
    session.push_image(PICTURE)
    session.push_text("last")
    session.commit(respond=False)
    other.push_text("Hello?")
    other.commit()
    stage.run()
    assert len(stage.replies(stage.so_far(other))) == 1 and stage.text_of(session) == (
        "<|im_start|>"
    )
    gate.set()
    assert names(stage.told(session)) == ["TurnCommitted"]
    media = "<|audio_bos|><|audio_eos|><|vision_bos|>" + "<|IMAGE|>" * 6 + "<|vision_eos|>"
    assert stage.text_of(session) == f"<|im_start|>user\nFirst {media}last<|im_end|>\n"


# ---- with a thread


def test_an_engine_with_a_thread(stage: Stage) -> None:
    """Callers in threads of their own; everyone hears what they hear without one."""
    expected = []
    for n in range(3):
        session = stage.open(seed=n)
        session.push_text(f"Number {n}?")
        session.commit()
        expected.append((stage.reply(session).text, 280))
        session.close()
    engine = Engine(stage.model, max_sessions=3)
    told: dict[int, tuple[str, int]] = {}

    def call(n: int) -> None:
        session = engine.open(seed=n, **SHORT)
        for word in ("Number ", f"{n}?"):
            session.push_text(word)
        session.commit()
        text = ""
        for event in session.events():
            text += event.text if isinstance(event, api.TextDelta) else ""
            if isinstance(event, api.ResponseDone):
                told[n] = text, event.audio_ms
                session.close()
        assert isinstance(event, api.Closed)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [told[n] for n in range(3)] == expected
    assert not engine.sessions and engine.stats()["sessions"] == 0
    waiting = engine.open()
    before = time.monotonic()
    assert list(waiting.events(timeout_s=0.2)) == [] and time.monotonic() - before >= 0.2
    engine.close()
    assert names(waiting.events()) == ["Closed"]
    assert not any(t.name == "thinktalk" and t.is_alive() for t in [engine._thread] if t)
