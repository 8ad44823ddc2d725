"""Small parts of the server: text filters, telephone sound, settings of a session, the docs; and a
soak of many short sessions that must leave nothing behind."""

import asyncio
import base64
import gc
import json
import os
import threading
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_samples import film
from openai import AsyncOpenAI
from realtime_client import pcm, tone
from scripted_engine import ScriptedEngine
from scripted_steps import until
from serving import serving

from thinktalk.live import api
from thinktalk.options import SemanticVad, ServerVad, Settings
from thinktalk.serve import g711
from thinktalk.serve.app import ServeOptions
from thinktalk.serve.filters import CallFilter, StopFilter
from thinktalk.serve.limits import Limits
from thinktalk.serve.metrics import Metrics
from thinktalk.serve.outbox import Outbox
from thinktalk.serve.realtime_commands import HANDLERS
from thinktalk.serve.realtime_config import Config
from thinktalk.serve.realtime_events import Translator
from thinktalk.serve.realtime_items import read_item
from thinktalk.serve.realtime_state import State
from thinktalk.serve.sessions import Sessions
from thinktalk.serve.sources import Sources

PROTOCOL = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
VOICES = ("Chelsie", "Ethan")


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


@given(st.text(alphabet="abc ", max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_stop_strings_are_found_wherever_text_is_cut(text: str, cuts: list[int]) -> None:
    stops = ["abc", "bb", " a c"]
    found = StopFilter(stops)
    shown = "".join(found.push(piece) for piece in pieces(text, cuts)) + found.finish()
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    assert shown == (text[: min(places)] if places else text)
    assert found.stopped is bool(places)


@given(
    st.lists(st.sampled_from(["a", " ", "<", "<tool_call>", "</tool_call>", "{}"]), max_size=9),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_calls_are_hidden_wherever_text_is_cut(words: list[str], cuts: list[int]) -> None:
    text = "".join(words)
    shown, hidden, rest = "", "", text
    while (place := rest.find("<tool_call>")) >= 0:
        end = rest.find("</tool_call>", place)
        end = len(rest) if end < 0 else end + len("</tool_call>")
        shown, hidden, rest = shown + rest[:place], hidden + rest[place:end], rest[end:]
    shown += rest
    found = CallFilter()
    seen = "".join(found.push(piece) for piece in pieces(text, cuts)) + found.finish(calls=1)
    assert (seen.lstrip(), found.hidden) == (shown.lstrip(), hidden)
    plain = CallFilter(active=False)
    assert "".join(map(plain.push, pieces(text, cuts))) == text


# ---- telephone sound


@pytest.mark.parametrize(
    "law, levels",
    [
        ("mu", {0x00: -32_124, 0x80: 32_124, 0xFF: 0, 0x7F: 0, 0xF0: 120, 0x8F: 16_764}),
        ("a", {0xD5: 8, 0x55: -8, 0xAA: 32_256, 0x2A: -32_256, 0xC5: 264, 0x80: 5_504}),
    ],
)
def test_laws(law: str, levels: dict[int, int]) -> None:
    """Values of the tables in ITU-T G.711, as 16-bit samples."""
    decoded = g711.decode(bytes(levels), law=law)
    assert dict(zip(levels, decoded.tolist(), strict=True)) == levels


@pytest.mark.parametrize("law", ["mu", "a"])
def test_every_code_comes_back_and_samples_come_near(law: str) -> None:
    codes = bytes(range(256))
    again = g711.decode(g711.encode(g711.decode(codes, law=law), law=law), law=law)
    assert (again == g711.decode(codes, law=law)).all()
    samples = np.arange(-32_768, 32_768, 7, dtype=np.int64).astype(np.int16)
    error = np.abs(g711.decode(g711.encode(samples, law=law), law=law).astype(int) - samples)
    assert (error <= np.maximum(8, np.abs(samples.astype(int)) / 16)).all()


def test_telephone_streams_as_a_whole() -> None:
    wave = tone(0.5).astype(np.float32)
    whole = g711.Telephone("mu").push(wave, last=True)
    line = g711.Telephone("mu")
    parts = b"".join(line.push(wave[n : n + 701]) for n in range(0, len(wave), 701))
    parts += line.push(np.zeros(0, np.float32), last=True)
    assert len(whole) == 4000 and parts == whole


# ---- translation


def test_what_was_interrupted_is_not_sent_any_more() -> None:
    async def translate() -> list[dict[str, Any]]:
        engine = ScriptedEngine()
        sessions = Sessions(engine, Limits())
        outbox = Outbox(max_unsent=1 << 20, on_overflow=lambda: None)
        state = State(
            id="s", model="m", config=Config(voice="Chelsie"), outbox=outbox,
            metrics=Metrics(sessions), transcribe=print, end=print, rate_limits=list,
        )  # fmt: skip
        tell = Translator(state)
        reply, sound = {"response": "r", "item": "i"}, np.zeros(240, np.float32)
        tell(api.ResponseStarted("s", 0, **reply))
        tell(api.TextDelta("s", 0, **reply, text="one"))
        tell(api.AudioDelta("s", 0, **reply, samples=sound))
        tell(api.SpeechStarted("s", 1, item="u", audio_ms=9))
        tell(api.TextDelta("s", 0, **reply, text=" late"))
        tell(api.AudioDelta("s", 0, **reply, samples=sound))
        done = {"status": "cancelled", "reason": "turn_detected", "text": "one", "audio_ms": 10}
        tell(api.ResponseDone("s", 1, **reply, **done))  # type: ignore[arg-type]
        sent: list[dict[str, Any]] = []

        async def send(text: str) -> None:
            sent.append(json.loads(text))

        task = asyncio.create_task(outbox.run(send))
        await outbox.empty()
        task.cancel()
        return sent

    sent = asyncio.run(translate())
    assert [e["delta"] for e in sent if "transcript.delta" in e["type"]] == ["one"]
    kinds = [event["type"] for event in sent]
    assert "response.output_audio.delta" not in kinds and "response.done" in kinds
    assert kinds.index("input_audio_buffer.speech_started") < kinds.index("response.done")


# ---- settings


def test_settings_of_a_session() -> None:
    base = Settings(turn_detection=ServerVad())
    config = Config(voice="Chelsie").changed(
        {
            "type": "realtime",
            "instructions": "be kind",
            "output_modalities": ["text"],
            "max_output_tokens": 50,
            "tools": [{"type": "function", "name": "f"}],
            "audio": {
                "input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}},
                "output": {"voice": {"id": "ethan"}},
            },
        },
        voices=VOICES,
    )
    settings = config.settings(base)
    assert settings == Settings(
        voice="Ethan",
        speak=False,
        system="be kind",
        tools=({"type": "function", "name": "f"},),
        turn_detection=SemanticVad(eagerness="high"),
        max_text_tokens=50,
    )
    silent = config.changed({"type": "realtime", "tool_choice": "none"}, voices=VOICES)
    assert silent.settings(base).tools == ()
    back = config.changed({"type": "realtime", "tools": [], "instructions": None}, voices=VOICES)
    assert (back.tools, back.instructions) == ((), "")
    listening = Config(voice="Chelsie").changed({"type": "transcription"}, voices=VOICES)
    detection = listening.settings(base).turn_detection
    assert detection is not None and not detection.create_response


def test_films_as_items() -> None:
    mp4 = film("mp4", seconds=1)
    url = "data:video/mp4;base64," + base64.b64encode(mp4).decode()
    part = {"type": "input_video", "video_url": url, "fps": 1}
    item = {"type": "message", "role": "user", "content": [part]}
    sources = Sources(Limits(), remote="off")
    message, told = read_item(item, new_id=lambda: "i", sources=sources, sound="audio/pcm")
    assert message["content"] == [{"type": "video", "video": mp4, "fps": 1}]
    assert told["content"] == [{"type": "input_video"}] and told["id"] == "i"
    sources.close()


def test_the_docs_name_everything() -> None:
    for limit in fields(Limits):
        assert f"`{limit.name}`" in PROTOCOL
    for event in HANDLERS:
        family, _, name = event.rpartition(".")
        assert event in PROTOCOL or (family in PROTOCOL and f"`.{name}`" in PROTOCOL), event
    code = PROTOCOL.split("```json\n")[1].split("```")[0]
    assert json.loads(code)["type"] in HANDLERS


# ---- soak


def test_many_short_sessions_leave_nothing() -> None:
    engine = ScriptedEngine(max_sessions=8)
    with serving(engine, ServeOptions(limits=Limits(resume_s=0.05))) as url:
        asyncio.run(crowd(url, count=4))  # everything that is loaded once is loaded
        until(lambda: not engine.sessions)
        before = held()
        asyncio.run(crowd(url, count=40))
        until(lambda: not engine.sessions)
        until(lambda: held()[0] <= before[0])
        after = held()
    assert len(engine.opened) > 80
    assert after[0] <= before[0] and after[1] <= before[1] + 3, (before, after)


def held() -> tuple[int, int]:
    """Threads (without pools, which are bounded) and open files of this process."""
    gc.collect()
    threads = [t for t in threading.enumerate() if not t.name.startswith(("asyncio_", "media"))]
    return len(threads), len(os.listdir("/proc/self/fd"))


async def crowd(url: str, *, count: int) -> None:
    """Sessions that talk, leave in the middle, or only ask; six at a time."""
    sdk = AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=5)
    places = asyncio.Semaphore(6)

    async def one(number: int) -> None:
        async with places:
            messages: Any = [{"role": "user", "content": "hi"}]
            stream = await sdk.chat.completions.create(model="m", messages=messages, stream=True)
            async for _ in stream:
                if number % 3 == 0:
                    break
            await stream.close()
        async with places, sdk.realtime.connect(model="m") as talk:
            sound = np.concatenate((tone(0.2), np.zeros(15_000)))
            await talk.input_audio_buffer.append(audio=pcm(sound))
            async for event in talk:
                if event.type == ("response.created" if number % 2 else "response.done"):
                    break
            if number % 4 == 1:  # as a broken network would
                talk._connection.transport.abort()

    await asyncio.gather(*(one(number) for number in range(count)))
    await sdk.close()
