"""The Realtime dialect over a real socket, with OpenAI's SDK; a scripted engine stands in for the
model. Every event that arrives is checked against OpenAI's types (realtime_client.py)."""

import base64
import io
import json
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from realtime_client import GOLDEN, Client, check, is_subsequence, pcm, realtime, tone
from scripted_engine import ScriptedEngine
from scripted_steps import Call, Say, Sing, Wait, until
from serving import serving

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "the weather",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}
REPLY = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
    "rate_limits.updated",
]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def url(engine: ScriptedEngine) -> Iterator[str]:
    with serving(engine) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with realtime(url) as client:
        yield client


def test_golden_events_pass_the_check() -> None:
    for event in GOLDEN:
        check(event)


def test_a_spoken_turn_in_openais_order(client: Client) -> None:
    client.speak()
    client.until("rate_limits.updated")
    assert client.kinds() == [
        "session.created",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        *REPLY,
    ]
    names = {e["item_id"] for e in client.seen if e["type"].startswith("input_audio_buffer.")}
    added, reply = (e["item"] for e in client.of("conversation.item.added"))
    assert names == {added["id"]} and added["content"] == [
        {"type": "input_audio", "transcript": None}
    ]
    assert client.of("conversation.item.added")[1]["previous_item_id"] == added["id"]
    done = client.of("response.done")[0]["response"]
    assert done["status"] == "completed" and done["output"][0]["id"] == reply["id"]
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "hello there."}]
    assert done["usage"]["output_token_details"] == {"text_tokens": 3, "audio_tokens": 20}
    assert len(client.sound()) == 0.4 * 24_000
    created = client.of("response.created")[0]["response"]
    assert (created["status"], created["output"]) == ("in_progress", [])


def test_input_is_transcribed_beside_the_reply(client: Client) -> None:
    session = client.setup(audio={"input": {"transcription": {"model": "whisper-1"}}})
    assert session["audio"]["input"]["transcription"] == {"model": "scripted"}
    client.speak()
    done = client.until("conversation.item.input_audio_transcription.completed")
    deltas = client.of("conversation.item.input_audio_transcription.delta")
    assert "".join(e["delta"] for e in deltas) == done["transcript"] == "what did you say"
    assert done["usage"]["type"] == "duration" and 0.3 < done["usage"]["seconds"] < 1.2
    client.send("conversation.item.retrieve", item_id=done["item_id"])
    item = client.until("conversation.item.retrieved")["item"]
    assert item["content"] == [{"type": "input_audio", "transcript": "what did you say"}]


def test_barge_in_and_truncate(engine: ScriptedEngine, client: Client) -> None:
    go_on = threading.Event()
    engine.script = lambda _: (Say("hello there"), Sing(1000), Wait(go_on), Sing(1000))
    client.speak()
    reply = client.until("response.output_audio.delta")["item_id"]
    client.speak(0.2, silence=0)
    client.until("response.done")
    kinds = client.kinds()
    start = len(kinds) - 1 - kinds[::-1].index("input_audio_buffer.speech_started")
    assert kinds[start:] == [
        "input_audio_buffer.speech_started",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    response = client.seen[-1]["response"]
    assert response["status"] == "cancelled"
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert response["output"][0]["status"] == "incomplete"
    client.send("conversation.item.truncate", item_id=reply, content_index=0, audio_end_ms=500)
    truncated = client.until("conversation.item.truncated")
    assert (truncated["item_id"], truncated["audio_end_ms"]) == (reply, 500)
    assert len(client.of("conversation.item.truncated")) == 1, "the engine's own is not told"
    client.send("conversation.item.retrieve", item_id=reply)
    item = client.until("conversation.item.retrieved")["item"]
    assert item["content"][0]["transcript"] == "hello"


def test_without_interruption_both_go_on(engine: ScriptedEngine, client: Client) -> None:
    go_on = threading.Event()
    engine.script = lambda _: (Say("a"), Sing(40), Wait(go_on), Sing(40))
    turns = {"type": "server_vad", "interrupt_response": False, "silence_duration_ms": 200}
    session = client.setup(audio={"input": {"turn_detection": turns}})
    assert session["audio"]["input"]["turn_detection"]["interrupt_response"] is False
    client.speak()
    client.until("response.output_audio.delta")
    client.speak()
    client.until("input_audio_buffer.committed")
    go_on.set()
    assert client.until("response.done")["response"]["status"] == "completed"
    assert client.until("response.done")["response"]["status"] == "completed"


def test_push_to_talk(client: Client) -> None:
    session = client.setup(audio={"input": {"turn_detection": None}})
    assert session["audio"]["input"]["turn_detection"] is None
    client.speak()
    client.send("input_audio_buffer.commit")
    item = client.until("conversation.item.done")["item"]
    client.send("response.create", response={"metadata": {"client_event_id": "x"}})
    created = client.until("response.created")["response"]
    assert created["metadata"] == {"client_event_id": "x"}
    assert client.until("response.done")["response"]["metadata"] == {"client_event_id": "x"}
    assert "input_audio_buffer.speech_started" not in client.kinds()
    assert client.of("conversation.item.added")[1]["previous_item_id"] == item["id"]
    client.speak()
    client.send("input_audio_buffer.clear")
    client.until("input_audio_buffer.cleared")
    client.send("input_audio_buffer.commit", event_id="mine")
    error = client.until("error")["error"]
    assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")


def test_semantic_detection_is_spoken(engine: ScriptedEngine, client: Client) -> None:
    turns = {"type": "semantic_vad", "eagerness": "low"}
    session = client.setup(audio={"input": {"turn_detection": turns}})
    assert session["audio"]["input"]["turn_detection"] == {
        **turns,
        "create_response": True,
        "interrupt_response": True,
    }
    client.speak()
    client.until("response.done")
    assert engine.opened[-1].settings.turn_detection.eagerness == "low"  # type: ignore[union-attr]


def test_text_in_text_out(engine: ScriptedEngine, client: Client) -> None:
    session = client.setup(output_modalities=["text"], instructions="be brief")
    assert session["output_modalities"] == ["text"]
    item = {"type": "message", "role": "user", "id": "mine", "content": [text("hi")]}
    client.send("conversation.item.create", item=item)
    assert client.until("conversation.item.added")["item"] == {
        **item,
        "object": "realtime.item",
        "status": "completed",
    }
    client.send("response.create")
    done = client.until("response.done")["response"]
    assert done["output"][0]["content"] == [{"type": "output_text", "text": "hello there."}]
    assert is_subsequence(
        [
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
        ],
        client.kinds(),
    )
    assert "response.output_audio.delta" not in client.kinds()
    session = engine.opened[-1]
    assert not session.settings.speak and session.settings.system == "be brief"
    assert session.items[0].content == {
        "role": "user",
        "content": [{"type": "text", "text": "hi"}],
    }
    until(lambda: len(engine.sessions) == 1)  # the spoken one was exchanged, not kept


def test_function_calls(engine: ScriptedEngine, client: Client) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Bern"}}\n</tool_call>'
    engine.script = lambda _: (
        Say("Let me see. "),
        Sing(40),
        Say(call[:9]),
        Say(call[9:]),
        Call("get_weather", {"place": "Bern"}),
    )
    session = client.setup(tools=[WEATHER], tool_choice="auto")
    assert session["tools"] == [WEATHER]
    client.send("conversation.item.create", item=message("how is the weather?"))
    client.send("response.create")
    output = client.until("response.done")["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call"]
    assert output[0]["content"][0]["transcript"] == "Let me see. "
    assert output[1]["name"] == "get_weather"
    assert json.loads(output[1]["arguments"]) == {"place": "Bern"}
    kinds = client.kinds()
    assert is_subsequence(
        [
            "response.output_item.done",
            "response.output_item.added",
            "conversation.item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.done",
        ],
        kinds,
    )
    result = {"type": "function_call_output", "call_id": output[1]["call_id"], "output": "rain"}
    engine.script = lambda session: (Say(f"it is {session.items[-1].content['content']}"),)
    client.send("conversation.item.create", item=result, previous_item_id=output[1]["id"])
    added = client.until("conversation.item.added")
    assert added["previous_item_id"] == output[1]["id"]
    client.send("response.create")
    done = client.until("response.done")["response"]
    assert done["output"][0]["content"][0]["transcript"] == "it is rain"
    session = engine.opened[-1]
    assert [item.role for item in session.items] == ["user", "assistant", "tool", "assistant"]


def test_a_call_alone_has_no_message(engine: ScriptedEngine, client: Client) -> None:
    engine.script = lambda _: (
        Say("<tool_call>{}</tool_call>"),
        Sing(100),
        Call("get_weather", {}),
    )
    client.setup(tools=[WEATHER])
    client.send("response.create")
    output = client.until("response.done")["response"]["output"]
    assert [item["type"] for item in output] == ["function_call"]
    assert not len(client.sound())


def test_pictures_as_items_and_frames(engine: ScriptedEngine, client: Client) -> None:
    picture = data_uri(Image.new("RGB", (40, 30), "red"))
    content = [text("what is this?"), {"type": "input_image", "image_url": picture}]
    client.send(
        "conversation.item.create",
        item={"type": "message", "role": "user", "content": content},
    )
    item = client.until("conversation.item.added")["item"]
    assert item["content"][1] == {"type": "input_image", "detail": "auto"}
    session = engine.opened[-1]
    seen = session.items[0].content["content"][1]["image"]
    assert seen.shape == (30, 40, 3) and seen[0, 0, 0] > 200
    client.push(np.zeros(12_000))
    client.send("input_image_buffer.append", image=picture.partition(",")[2])
    client.send("input_image_buffer.append", image=picture, time_ms=750)
    until(lambda: len(session.frames) == 2)
    assert [time_s for _, time_s in session.frames] == [0.5, 0.75]
    assert session.frames[0][0].shape == (30, 40, 3)


def test_sound_as_an_item(engine: ScriptedEngine, client: Client) -> None:
    content = [{"type": "input_audio", "audio": pcm(tone(0.5))}]
    client.send(
        "conversation.item.create",
        item={"type": "message", "role": "user", "content": content},
    )
    client.until("conversation.item.added")
    part = engine.opened[-1].items[0].content["content"][0]
    assert part["sample_rate"] == 24_000 and len(part["audio"]) == 12_000


@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
def test_telephone_sound(engine: ScriptedEngine, client: Client, law: str) -> None:
    formats = {"input": {"format": {"type": law}}, "output": {"format": {"type": law}}}
    session = client.setup(audio=formats)
    assert session["audio"]["input"]["format"] == {"type": law}
    silence = {"audio/pcmu": 0xFF, "audio/pcma": 0xD5}[law]
    loud = {"audio/pcmu": 0x80, "audio/pcma": 0xAA}[law]
    data = bytes([loud]) * 2400 + bytes([silence]) * 8000
    client.send("input_audio_buffer.append", audio=base64.b64encode(data).decode())
    client.until("response.done")
    deltas = [base64.b64decode(e["delta"]) for e in client.of("response.output_audio.delta")]
    assert sum(map(len, deltas)) == 0.4 * 8000
    assert engine.opened[-1].samples_heard == 1.3 * 24_000


def test_delete(engine: ScriptedEngine, client: Client) -> None:
    client.send("conversation.item.create", item=message("one") | {"id": "one"})
    client.until("conversation.item.done")
    client.send("conversation.item.delete", item_id="one")
    assert client.until("conversation.item.deleted")["item_id"] == "one"
    assert engine.opened[-1].items == []
    client.send("conversation.item.retrieve", item_id="one")
    assert client.until("error")["error"]["code"] == "item_retrieve_invalid_item_id"


def test_cancel(engine: ScriptedEngine, client: Client) -> None:
    engine.script = lambda _: (Say("a"), Sing(40), Wait(threading.Event()))
    client.send("response.create")
    client.until("response.output_audio.delta")
    client.send("response.create", event_id="again")
    error = client.until("error")["error"]
    assert error["code"] == "conversation_already_has_active_response"
    assert error["event_id"] == "again"
    client.send("response.cancel")
    done = client.until("response.done")["response"]
    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    client.send("response.cancel", event_id="late")
    error = client.until("error")["error"]
    assert (error["code"], error["event_id"]) == ("response_cancel_not_active", "late")
    engine.script = lambda _: (Say("b"),)
    client.send("response.create")
    assert client.until("response.done")["response"]["status"] == "completed"


def test_a_response_overrides_and_the_session_comes_back(
    engine: ScriptedEngine, client: Client
) -> None:
    engine.script = lambda session: (Say(str(session.settings.system)),)
    client.setup(instructions="usual")
    asked = {"instructions": "special", "max_output_tokens": 7, "output_modalities": ["text"]}
    client.send("response.create", response=asked)
    done = client.until("response.done")["response"]
    assert done["output"][0]["content"] == [{"type": "output_text", "text": "special"}]
    assert done["max_output_tokens"] == 7
    client.send("response.create")
    done = client.until("response.done")["response"]
    assert done["output"][0]["content"][0]["transcript"] == "usual"


def test_a_response_out_of_band(engine: ScriptedEngine, client: Client) -> None:
    engine.script = lambda session: (Say(f"{len(session.items)} {session.settings.system}"),)
    client.send("conversation.item.create", item=message("one") | {"id": "one"})
    client.until("conversation.item.done")
    client.send("response.create", response={"conversation": "none"})
    done = client.until("response.done")["response"]
    assert done["conversation_id"] is None
    assert done["output"][0]["content"][0]["transcript"] == "1 None"
    inputs = [{"type": "item_reference", "id": "one"}, message("two")]
    asked = {"conversation": "none", "input": inputs, "instructions": "other"}
    client.send("response.create", response=asked)
    done = client.until("response.done")["response"]
    assert done["output"][0]["content"][0]["transcript"] == "2 other"
    assert len(client.of("conversation.item.added")) == 1
    until(lambda: len(engine.sessions) == 1)


def test_a_transcription_session(url: str) -> None:
    with realtime(url, intent="transcription") as client:
        session = client.seen[0]["session"]
        assert session["type"] == "transcription" and "instructions" not in session
        client.speak()
        done = client.until("conversation.item.input_audio_transcription.completed")
        assert done["transcript"] == "what did you say"
        client.send("response.create")
        client.until("error")
        assert "response.created" not in client.kinds()


def message(words: str) -> dict[str, object]:
    return {"type": "message", "role": "user", "content": [text(words)]}


def text(words: str) -> dict[str, str]:
    return {"type": "input_text", "text": words}


def data_uri(image: Image.Image) -> str:
    held = io.BytesIO()
    image.save(held, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
