"""The server over the real engine with spark, through OpenAI's SDK: it hears, answers, speaks."""

import base64
import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from realtime_client import Client, is_subsequence, realtime
from scripted_steps import until
from serving import serving

import thinktalk
from thinktalk.live.engine import Engine
from thinktalk.media.decode import load_audio
from thinktalk.playroom import talk
from thinktalk.serve.app import ServeOptions

QUESTION = Path(__file__).parents[1] / "examples" / "question.wav"
SPOKEN: Any = {"modalities": ["text", "audio"], "audio": {"voice": "Chelsie", "format": "wav"}}
SUM: Any = [{"role": "user", "content": "what is three plus four?"}]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return thinktalk.live(thinktalk.load("spark"), max_sessions=3)


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with serving(engine, ServeOptions(max_sessions=3)) as address:
        yield address


@pytest.fixture(scope="module")
def sdk(url: str) -> OpenAI:
    return OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)


@pytest.fixture(scope="module")
def question() -> np.ndarray:
    """The example recording and a second of silence."""
    wave = load_audio(QUESTION, sample_rate=24_000)
    return np.concatenate((wave, np.zeros(24_000, np.float32)))


@pytest.fixture(autouse=True)
def nothing_stays(engine: Engine) -> Iterator[None]:
    yield
    until(lambda: engine.stats()["sessions"] == 0)


def test_typed_question(sdk: OpenAI) -> None:
    reply = sdk.chat.completions.create(model="spark", messages=SUM)
    assert "seven" in (reply.choices[0].message.content or "")
    assert reply.usage is not None and reply.usage.completion_tokens > 3
    stream = sdk.chat.completions.create(model="spark", messages=SUM, stream=True)
    words = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert words == reply.choices[0].message.content


def test_stop_and_length(sdk: OpenAI) -> None:
    choice = sdk.chat.completions.create(model="spark", messages=SUM, stop=" is").choices[0]
    assert (choice.message.content, choice.finish_reason) == ("three plus four", "stop")
    choice = sdk.chat.completions.create(model="spark", messages=SUM, max_tokens=2).choices[0]
    assert choice.finish_reason == "length"


def test_spoken_question_spoken_answer(sdk: OpenAI) -> None:
    data = base64.b64encode(QUESTION.read_bytes()).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    messages: Any = [{"role": "user", "content": [part]}]
    reply = sdk.chat.completions.create(model="spark", messages=messages, **SPOKEN)
    audio = reply.choices[0].message.audio
    assert audio is not None and "paris" in audio.transcript
    with wave.open(io.BytesIO(base64.b64decode(audio.data))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert len(samples) > 0.5 * 24_000 and np.abs(samples).max() > 1000
    offline = thinktalk.generate(thinktalk.load("spark"), [str(QUESTION)], voice="Chelsie")
    assert audio.transcript == offline.text
    assert len(samples) == len(offline.audio), "streamed is what generate makes"
    details = reply.usage and reply.usage.prompt_tokens_details
    assert details and details.audio_tokens and details.audio_tokens > 20


def test_speech(sdk: OpenAI) -> None:
    with sdk.audio.speech.with_streaming_response.create(
        model="spark", voice="Ethan", input="the answer is seven.", response_format="pcm"
    ) as reply:
        pieces = list(reply.iter_bytes())
    samples = np.frombuffer(b"".join(pieces), "<i2")
    assert len(samples) > 0.3 * 24_000 and np.abs(samples).max() > 1000


def test_transcription(sdk: OpenAI) -> None:
    reply = sdk.audio.transcriptions.create(
        model="spark", file=QUESTION.open("rb"), response_format="verbose_json"
    )
    assert reply.text == "what is the capital of france?"
    assert reply.segments and [segment.text for segment in reply.segments] == [reply.text]
    assert 0 <= reply.segments[0].start < 0.5 < reply.segments[0].end <= reply.duration


def test_persona_and_tool(sdk: OpenAI) -> None:
    for name in ("grace", "frank"):
        messages: Any = [
            {"role": "system", "content": f"your name is {name}."},
            {"role": "user", "content": "what is your name?"},
        ]
        reply = sdk.chat.completions.create(model="spark", messages=messages)
        assert reply.choices[0].message.content == f"my name is {name}."
    tools: Any = [talk.GET_TIME]
    messages = [{"role": "user", "content": "what time is it?"}]
    choice = sdk.chat.completions.create(model="spark", messages=messages, tools=tools).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    call: Any = choice.message.tool_calls[0]
    assert call.function.name == "get_time" and choice.message.content is None
    result = {"role": "tool", "tool_call_id": call.id, "content": "five"}
    messages += [choice.message.model_dump(), result]
    reply = sdk.chat.completions.create(model="spark", messages=messages, tools=tools)
    assert reply.choices[0].message.content == "it is five o'clock."


def test_a_tool_in_a_spoken_conversation(engine: Engine, url: str) -> None:
    before = engine.counters["talker_steps"], engine.counters["voice_blocks"]
    with realtime(url) as client:
        client.setup(tools=[{"type": "function", **talk.GET_TIME["function"]}])
        content = [{"type": "input_text", "text": "what time is it?"}]
        item = {"type": "message", "role": "user", "content": content}
        client.send("conversation.item.create", item=item)
        client.send("response.create")
        (call,) = client.until("response.done")["response"]["output"]
        assert (call["type"], call["name"]) == ("function_call", "get_time")
        assert not len(client.sound()), "nobody hears a function call"
        after = engine.counters["talker_steps"], engine.counters["voice_blocks"]
        assert before == after, "nor is it spoken for nobody"
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "ten"}
        client.send("conversation.item.create", item=result)
        client.send("response.create")
        (said,) = client.until("response.done")["response"]["output"]
        assert said["content"][0]["transcript"] == "it is ten o'clock."
        assert np.abs(client.sound()).max() > 1000


def test_a_spoken_turn(url: str, question: np.ndarray) -> None:
    with realtime(url) as client:
        client.setup(audio={"input": {"transcription": {"model": "spark"}}})
        client.push(question)
        client.until("rate_limits.updated")
        done = client.of("response.done")[0]["response"]
        assert done["status"] == "completed"
        assert "paris" in done["output"][0]["content"][0]["transcript"]
        assert np.abs(client.sound()).max() > 1000
        usage = done["usage"]
        assert usage["input_token_details"]["audio_tokens"] > 20
        assert usage["output_token_details"]["audio_tokens"] > 20
        assert is_subsequence(
            [
                "input_audio_buffer.speech_started",
                "input_audio_buffer.speech_stopped",
                "input_audio_buffer.committed",
                "response.created",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_audio_transcript.delta",
                "response.output_audio.delta",
                "response.output_audio.done",
                "response.done",
            ],
            client.kinds(),
        )
        heard = until_seen(client, "conversation.item.input_audio_transcription.completed")
        assert heard["transcript"] == "what is the capital of france?"


def test_two_turns_with_an_interruption(url: str, question: np.ndarray) -> None:
    with realtime(url) as client:
        client.push(question)
        reply = client.until("response.output_audio.delta")["item_id"]
        client.push(question)
        first = client.until("response.done")["response"]
        if first["status"] == "completed":  # a fast machine: it was said already
            audio_ms = 100
        else:
            assert first["status_details"]["reason"] == "turn_detected"
            audio_ms = min(100, heard_ms(client))
        client.send(
            "conversation.item.truncate", item_id=reply, content_index=0, audio_end_ms=audio_ms
        )
        until_seen(client, "conversation.item.truncated")
        second = until_seen(client, "response.done", 2)["response"]
        assert second["status"] == "completed"
        assert second["output"][0]["content"][0]["transcript"]


def test_push_to_talk_and_typed_words_in_one_conversation(url: str, question: np.ndarray) -> None:
    with realtime(url) as client:
        client.setup(output_modalities=["text"], audio={"input": {"turn_detection": None}})
        client.push(question)
        client.send("input_audio_buffer.commit")
        client.send("response.create")
        done = client.until("response.done")["response"]
        assert "paris" in done["output"][0]["content"][0]["text"]
        content = [{"type": "input_text", "text": SUM[0]["content"]}]
        item = {"type": "message", "role": "user", "content": content}
        client.send("conversation.item.create", item=item)
        client.send("response.create")
        done = client.until("response.done")["response"]
        assert done["status"] == "completed" and done["output"][0]["content"][0]["text"]
        assert done["usage"]["input_token_details"]["cached_tokens"] > 0


def test_items_in_any_order_are_the_same_conversation(url: str, sdk: OpenAI) -> None:
    history: Any = [
        {"role": "user", "content": "what is the capital of france?"},
        {"role": "assistant", "content": "the capital of france is paris."},
        *SUM,
    ]
    whole = sdk.chat.completions.create(model="spark", messages=history)
    with realtime(url) as client:
        client.setup(output_modalities=["text"])
        names = ("first", "second", "third")
        for number, previous in ((2, "root"), (0, "root"), (1, "first")):
            kind = "output_text" if number == 1 else "input_text"
            content = [{"type": kind, "text": history[number]["content"]}]
            item = {"type": "message", "role": history[number]["role"], "content": content}
            item["id"] = names[number]
            client.send("conversation.item.create", item=item, previous_item_id=previous)
        client.send("response.create")
        done = client.until("response.done")["response"]
        assert done["output"][0]["content"][0]["text"] == whole.choices[0].message.content
        assert whole.usage and done["usage"]["input_tokens"] == whole.usage.prompt_tokens
        added = [e["previous_item_id"] for e in client.of("conversation.item.added")]
        assert added == [None, None, "first", "third"]


def test_sessions_give_their_cache_blocks_back(engine: Engine, sdk: OpenAI) -> None:
    def free() -> float:
        until(lambda: engine.stats()["sessions"] == 0)
        return engine.stats()["thinker_blocks_free"] + engine.stats()["talker_blocks_free"]

    sdk.chat.completions.create(model="spark", messages=SUM)
    before = free()
    for _ in range(4):
        sdk.chat.completions.create(model="spark", messages=SUM)
    assert free() == before


def heard_ms(client: Client) -> int:
    return 1000 * len(client.sound()) // 24_000


def until_seen(client: Client, kind: str, count: int = 1) -> dict[str, Any]:
    """The count-th event of a kind, whether or not it was read already."""
    while len(client.of(kind)) < count:
        client.until(kind)
    return client.of(kind)[count - 1]
