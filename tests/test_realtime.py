"""The Realtime dialect over a real socket, with OpenAI's SDK; a scripted engine stands in for the
model. Every event that arrives is checked against OpenAI's types (realtime_client.py)."""

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image
from realtime_client import (
    GOLDEN,
    Client,
    check,
    is_subsequence,
    message,
    pcm,
    realtime,
    text,
    tone,
)
from scripted_engine import ScriptedEngine
from scripted_steps import Say, Sing, Wait, until

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


def data_uri(image: Image.Image) -> str:
    held = io.BytesIO()
    image.save(held, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
