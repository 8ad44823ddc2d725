"""`thinktalk talk` against a server, and `thinktalk serve` as a process: options, signals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from realtime_client import pcm
from scripted_engine import ScriptedEngine
from scripted_steps import Break, Say
from serving import serving

from thinktalk import talk
from thinktalk.__main__ import main, parser
from thinktalk.media.decode import load_audio
from thinktalk.media.encode import write_wav
from thinktalk.serve.app import ServeOptions

QUESTION = Path(__file__).parents[1] / "examples" / "question.wav"


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """0.3 s of a tone."""
    path = tmp_path / "turn.wav"
    write_wav(path, 0.5 * np.sin(np.arange(7200) * 0.1).astype(np.float32))
    return str(path)


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine(max_sessions=3)


@pytest.fixture(scope="module")
def url(engine: ScriptedEngine) -> Iterator[str]:
    with serving(engine, ServeOptions(max_sessions=3, keys=("secret",))) as address:
        yield address


@pytest.mark.parametrize("mode", [[], ["--push-to-talk"]], ids=str)
def test_a_recording_is_answered(
    url: str,
    recording: str,
    tmp_path: Path,
    mode: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "answer.flac"
    arguments = ["--url", url, "--api-key", "secret", "--out", str(out), "--voice", "Ethan", *mode]
    assert main(["talk", recording, *arguments]) == 0
    told = capsys.readouterr().out
    assert "you: what did you say" in told and "answer: hello there." in told
    assert ("(you speak)" in told) is not bool(mode)
    for name in ("first text", "first audio (wire)", "first audio (ear)", "underrun"):
        assert name in told
    assert abs(len(load_audio(out, sample_rate=24_000)) - 9600) < 200


def test_the_recording_is_played_at_the_pace_of_time(
    engine: ScriptedEngine, url: str, recording: str
) -> None:
    turns = talk.run(recording, url=url, key="secret", turns=2)
    assert len(turns) == 2 and all(turn.status == "completed" for turn in turns)
    for turn in turns:  # 0.3 s of voice and 0.5 s of silence, which the server waits for
        assert turn.turn_ended - turn.voice_ended > 0.4
        assert turn.first_audio is not None and turn.first_audio >= turn.turn_ended
        assert turn.underrun_s >= 0
    assert len(engine.opened[-1].items) == 4


def test_many_at_once(url: str, recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    talk.run(recording, url=url, key="secret", sessions=5)
    told = capsys.readouterr()
    assert "5 sessions, 3 turns, 3 completed" in told.out and "p95" in told.out
    assert "2 of 5 sessions failed: all sessions are taken" in told.err


def test_refusals(
    engine: ScriptedEngine, url: str, recording: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["talk", recording, "--url", url]) == 2
    assert "401" in capsys.readouterr().err
    assert main(["talk", recording, "--url", "http://127.0.0.1:9"]) == 2
    assert main(["talk", recording, "--url", "nonsense://"]) == 2
    assert "no server's address" in capsys.readouterr().err
    assert main(["talk", "missing.wav", "--url", url]) == 2
    assert main(["talk", recording, "--url", url, "--api-key", "secret", "--voice", "Zed"]) == 2
    assert "unknown voice" in capsys.readouterr().err
    engine.script = lambda _: (Say("a"), Break())
    assert main(["talk", recording, "--url", url, "--api-key", "secret"]) == 2
    assert "made a mistake" in capsys.readouterr().err


def test_underruns_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((10.0, 10.4, 11.25))  # half a second of sound each time
    monkeypatch.setattr(talk.time, "perf_counter", lambda: next(times))
    event = {"type": "response.output_audio.delta", "delta": pcm(np.zeros(12_000))}
    turn = talk.Turn(turn_ended=9.5, voice_ended=9.0)
    for _ in range(3):
        turn.take(event)
    found = turn.latencies()
    assert found["underrun"] == pytest.approx(0.25)
    assert (found["first audio (wire)"], found["first audio (ear)"]) == (0.5, 1.0)


def test_quantiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert talk.quantile(values, 0.5) == 50 and talk.quantile(values, 0.95) == 95
    assert talk.quantile([7.0], 0.5) == talk.quantile([7.0], 0.95) == 7


# ---- serve


@pytest.mark.parametrize("command", ["serve", "talk"])
def test_help_loads_nothing_heavy(command: str) -> None:
    # -X importtime writes one line per imported module to stderr
    call = [sys.executable, "-X", "importtime", "-m", "thinktalk", command, "--help"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "numpy", "fastapi", "websockets"} & modules
    assert f"usage: thinktalk {command}" in done.stdout


def test_the_server_never_loads_torch() -> None:
    code = "import sys, thinktalk.serve.app, thinktalk.talk; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_options_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKTALK_PORT", "1234")
    monkeypatch.setenv("THINKTALK_API_KEY", "a,b")
    monkeypatch.setenv("THINKTALK_MODEL", "elsewhere")
    options = parser().parse_args(["serve", "--limit", "video_s=9"])
    assert (options.port, options.model) == (1234, "elsewhere")
    assert options.api_key == ["a", "b"] and options.limit == ["video_s=9"]
    assert parser().parse_args(["serve", "--port", "1"]).port == 1


@pytest.mark.parametrize(
    "arguments",
    [["--limit", "colour=1"], ["--model", "no-such-folder"], ["--max-sessions", "0"]],
    ids=str,
)
def test_serve_refuses_in_words(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert capsys.readouterr().err.startswith("thinktalk serve: ")


def test_a_server_process(recording: str) -> None:
    """spark behind `thinktalk serve`: it says where it serves, answers, and ends by a signal."""
    environment = os.environ | {"THINKTALK_MAX_SESSIONS": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "thinktalk", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        assert line.startswith("serving on http://127.0.0.1:"), line
        url = line.split()[2]
        health = json.load(urlopen(f"{url}/health"))
        assert (health["model"], health["max_sessions"]) == ("spark", 2)
        body = {"messages": [{"role": "user", "content": "what is three plus four?"}]}
        body |= {"stream": True}
        reply = urlopen(Request(f"{url}/v1/chat/completions", json.dumps(body).encode()))
        assert reply.readline().startswith(b"data: ")
        server.send_signal(signal.SIGINT)  # while a reply is in progress: it may end
        assert b"data: [DONE]" in reply.read()
        assert server.wait() == 0
        assert "Traceback" not in server.stderr.read()
