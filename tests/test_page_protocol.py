"""The page against a server that the test plays: what it sends, what it makes of what it gets, and
what it says and does on bad days. tests/test_page.py has it talk with the real one."""

import base64
import io
import json
import re
import time
import wave
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Page, expect
from scripted_server import RATE_HZ, WEB, Client, ScriptedServer, talk, tone

expect.set_options(timeout=120_000)


def exchange(client: Client, *, question: str, answer: str, seconds: float) -> None:
    """The user's turn u1 and a reply a1 (response r1) that has all arrived."""
    client.user_speaks("u1")
    client.user_stops("u1", end_ms=400, transcript=question)
    client.reply_begins("r1", "a1", after="u1")
    client.reply_says("r1", "a1", text=answer, samples=tone(seconds))
    client.reply_ends("r1", "a1")


def sound_of(event: dict[str, Any]) -> np.ndarray:
    """int16 [n] of an input_audio_buffer.append."""
    return np.frombuffer(base64.b64decode(event["audio"]), "<i2")


def caption(page: Page, item: str) -> str:
    return page.locator(f"[data-id={item}] .caption").inner_text()


# ---- talking


def test_setup_and_sound_of_the_microphone(page: Page, server: ScriptedServer) -> None:
    page.select_option("#voice", "Ethan")
    page.fill("#persona", "You are a pirate.")
    page.click("#talk")
    client = server.accept()
    session = client.expect("session.update")["session"]
    assert session["instructions"] == "You are a pirate."
    heard, spoken = session["audio"]["input"], session["audio"]["output"]
    assert spoken["voice"] == "Ethan"
    assert heard["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert heard["turn_detection"]["type"] == "server_vad"
    assert heard["turn_detection"]["silence_duration_ms"] == 500
    assert heard["transcription"] == {"model": "spark"}
    frames = [sound_of(client.expect("input_audio_buffer.append")) for _ in range(50)]
    assert {len(frame) for frame in frames} == {480}
    assert np.abs(np.concatenate(frames)).max() > 1000
    assert page.locator("#level").evaluate("meter => meter.value") > 0.02
    expect(page.locator("#state")).to_have_text("Connected")
    page.click("#talk")  # and off again: the turn ends in silence
    while len(sound_of(client.expect("input_audio_buffer.append"))) == 480:
        pass
    time.sleep(0.2)
    assert client.received.empty()


def test_captions_grow_and_an_interruption_cuts_them(page: Page, server: ScriptedServer) -> None:
    client = talk(page, server)
    client.user_speaks("u1")
    expect(page.locator("[data-id=u1] .caption")).to_have_text("…")
    client.user_stops("u1", end_ms=400, transcript="count, please")
    expect(page.locator("[data-id=u1] .caption")).to_have_text("count, please")
    words = "one two three four five six seven eight nine ten eleven twelve"
    client.reply_begins("r1", "a1", after="u1")
    client.reply_says("r1", "a1", text=words, samples=tone(6))
    expect(page.locator("[data-id=a1] .caption")).to_have_text(re.compile("two"))
    early = caption(page, "a1")
    assert words.startswith(early) and len(early) < len(words)
    expect(page.locator("#figure-latency")).to_have_text(re.compile(r"^\d+ ms$"))
    expect(page.locator("#figure-buffer")).not_to_have_text("0 ms")

    client.user_speaks("u2", start_ms=2000)
    truncate = client.expect("conversation.item.truncate")
    assert truncate["item_id"] == "a1" and truncate["content_index"] == 0
    assert 0 < truncate["audio_end_ms"] < 6000
    expect(page.locator("#figure-buffer")).to_have_text("0 ms")
    expect(page.locator("[data-id=a1] .note")).to_have_text(re.compile("interrupted"))
    cut = caption(page, "a1")
    assert cut and words.startswith(cut) and len(cut) < len(words)
    # What the server still had under way is neither heard nor read.
    client.reply_says("r1", "a1", text=" thirteen", samples=tone(2))
    client.reply_ends("r1", "a1", status="cancelled")
    place = {"item_id": "a1", "content_index": 0, "audio_end_ms": truncate["audio_end_ms"]}
    client.send("conversation.item.truncated", **place)
    assert client.expect("conversation.item.retrieve")["item_id"] == "a1"
    content = [{"type": "output_audio", "transcript": "one two"}]
    item = {"id": "a1", "type": "message", "role": "assistant", "content": content}
    client.send("conversation.item.retrieved", item=item)
    expect(page.locator("[data-id=a1] .caption")).to_have_text("one two")
    expect(page.locator("#figure-buffer")).to_have_text("0 ms")


def test_without_interruption_the_reply_goes_on(page: Page, server: ScriptedServer) -> None:
    page.uncheck("#interrupt")
    page.click("#talk")
    client = server.accept()
    detection = client.expect("session.update")["session"]["audio"]["input"]["turn_detection"]
    assert detection["interrupt_response"] is False
    exchange(client, question="count", answer="one two three", seconds=1)
    client.user_speaks("u2", start_ms=500)
    expect(page.locator("[data-id=a1][data-state=over] .caption")).to_have_text("one two three")


def test_stop_button_and_escape(page: Page, server: ScriptedServer) -> None:
    client = talk(page, server)
    for number, stop in enumerate(
        [lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")]
    ):
        response, item = f"r{number}", f"a{number}"
        client.reply_begins(response, item)
        client.reply_says(response, item, text="one two three", samples=tone(5))
        expect(page.locator(f"[data-id={item}] .caption")).to_have_text(re.compile("one"))
        stop()
        client.expect("response.cancel")
        assert client.expect("conversation.item.truncate")["item_id"] == item
        expect(page.locator("#stop")).to_be_disabled()


@pytest.mark.parametrize("way", ["space", "button"])
def test_push_to_talk(page: Page, server: ScriptedServer, way: str) -> None:
    page.select_option("#turns", "held")
    page.click("#talk")
    client = server.accept()
    session = client.expect("session.update")["session"]
    assert session["audio"]["input"]["turn_detection"] is None
    expect(page.locator("#talk")).to_have_text("Hold to talk")
    expect(page.locator("#off")).to_be_visible()
    time.sleep(0.2)
    assert client.received.empty()  # nothing is heard before the button
    if way == "space":
        page.keyboard.down("Space")
    else:
        page.hover("#talk")
        page.mouse.down()
    expect(page.locator("#talk")).to_have_text("Release to send")
    client.expect("input_audio_buffer.clear")
    for _ in range(30):
        client.expect("input_audio_buffer.append")
    page.keyboard.up("Space") if way == "space" else page.mouse.up()
    client.expect("input_audio_buffer.commit")
    client.expect("response.create")
    client.reply_begins("r1", "a1")
    client.reply_says("r1", "a1", text="yes", samples=tone(0.3))
    expect(page.locator("#figure-latency")).to_have_text(re.compile(r"^\d+ ms$"))
    page.click("#off")
    expect(page.locator("#talk")).to_have_text("Talk")


def test_a_short_press_says_nothing(page: Page, server: ScriptedServer) -> None:
    page.select_option("#turns", "held")
    client = talk(page, server)
    expect(page.locator("#talk")).to_have_text("Hold to talk")
    page.wait_for_timeout(500)  # what was said before the press does not make it longer
    page.click("#talk")
    expect(page.locator("#notices")).to_have_text(re.compile("Hold the button as long as"))
    kinds = [client.received.get()["type"] for _ in range(client.received.qsize())]
    assert set(kinds) <= {"input_audio_buffer.clear", "input_audio_buffer.append"}


def test_what_is_said_while_connecting_is_heard(page: Page, server: ScriptedServer) -> None:
    page.click("#talk")
    expect(page.locator("#talk")).to_have_text("Stop talking")
    page.wait_for_timeout(1000)  # the server takes its time
    client = server.accept()
    client.expect("session.update")
    began = time.monotonic()
    for _ in range(30):
        client.expect("input_audio_buffer.append")
    assert time.monotonic() - began < 0.5  # 600 ms of sound that waited


def test_files_of_the_page_are_small() -> None:
    for file in WEB.iterdir():
        lines = file.read_text().splitlines()
        assert len(lines) <= (500 if file.suffix == ".css" else 300), file.name
        assert all(len(line) <= 100 for line in lines if "<path" not in line), file.name


def test_space_types_a_space_where_one_types(page: Page, server: ScriptedServer) -> None:
    page.select_option("#turns", "held")
    client = talk(page, server)
    page.focus("#words")
    page.keyboard.type("a b")
    assert page.input_value("#words") == "a b"
    assert client.received.empty()


# ---- seeing


@pytest.mark.parametrize("source", ["camera", "screen"])
def test_frames_follow_the_sound(page: Page, server: ScriptedServer, source: str) -> None:
    client = talk(page, server)
    page.click(f"#{source}")
    expect(page.locator(f"#{source}")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#preview")).to_be_visible()
    client.expect("input_image_buffer.append")
    sounds = 0
    while (event := client.received.get(timeout=120))["type"] != "input_image_buffer.append":
        sounds += event["type"] == "input_audio_buffer.append"
    assert sounds == 25  # half a second of sound lies between two frames
    kind, _, data = event["image"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg;base64"
    assert picture.format == "JPEG" and max(picture.size) == 448
    page.click(f"#{source}")
    expect(page.locator("#stage")).to_be_hidden()


# ---- writing and files

# Files and requests of many megabytes stay in the browser: the test's way to it is slow.
DROP = """([name, type, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type}));
  document.body.dispatchEvent(
    new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
ANSWER_CHAT = """(lines) => {
  const fetch = window.fetch;
  window.fetch = (path, request) => {
    if (path !== "v1/chat/completions") return fetch(path, request);
    window.asked = JSON.parse(request.body);
    return Promise.resolve(new Response(lines.map((line) => `data: ${line}\n\n`).join("")));
  };
}"""


def red_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(file, "PNG")
    return file.getvalue()


def test_typed_message_with_files(page: Page, server: ScriptedServer) -> None:
    picture = red_png()
    recording = io.BytesIO()
    with wave.open(recording, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(48_000)
        left = (tone(1)[:24_000].repeat(2) * 32767).astype("<i2")
        file.writeframes(np.stack([left, left], 1).tobytes())
    files = [("red.png", "image/png", picture), ("tone.wav", "audio/wav", recording.getvalue())]
    page.set_input_files("#files", [{"name": n, "mimeType": m, "buffer": b} for n, m, b in files])
    expect(page.locator("#tray li")).to_have_count(2)
    page.fill("#words", "What is this?")
    page.press("#words", "Enter")
    client = server.accept()
    item = client.expect("conversation.item.create")["item"]
    client.expect("response.create")
    assert item["role"] == "user"
    image, audio, text = item["content"]
    assert image == {
        "type": "input_image",
        "image_url": "data:image/png;base64," + base64.b64encode(picture).decode(),
    }
    pcm = np.frombuffer(base64.b64decode(audio["audio"]), "<i2")
    assert audio["type"] == "input_audio" and abs(len(pcm) - RATE_HZ) < 100
    assert 0.3 < np.abs(pcm).max() / 32767 < 0.5
    assert text == {"type": "input_text", "text": "What is this?"}
    assert page.locator("#history img, #history audio").count() == 2
    assert page.locator("#tray li").count() == 0 and page.input_value("#words") == ""


def test_dropped_file_and_file_of_no_use(page: Page) -> None:
    page.evaluate(DROP, ["film.mp4", "video/mp4", 10])
    expect(page.locator("#tray li")).to_have_text(re.compile("film.mp4"))
    page.evaluate(DROP, ["letter.doc", "application/msword", 10])
    expect(page.locator("#notices")).to_have_text(re.compile("letter.doc: only pictures"))


def test_small_video_joins_the_talk(page: Page, server: ScriptedServer) -> None:
    film = FilePayload(name="film.mp4", mimeType="video/mp4", buffer=b"small")
    page.set_input_files("#files", film)
    expect(page.locator("#tray li")).to_have_text(re.compile("film.mp4"))
    page.click("#send")
    item = server.accept().expect("conversation.item.create")["item"]
    url = "data:video/mp4;base64," + base64.b64encode(b"small").decode()
    assert item["content"] == [{"type": "input_video", "video_url": {"url": url}}]


def test_spoken_question_about_files(page: Page, server: ScriptedServer) -> None:
    """They are shown when the user begins to speak, and stand before what is said."""
    client = talk(page, server)
    red = FilePayload(name="red.png", mimeType="image/png", buffer=red_png())
    page.set_input_files("#files", red)
    expect(page.locator("#tray li")).to_have_text(re.compile("red.png"))
    client.user_speaks("item_question")
    item = client.expect("conversation.item.create")["item"]
    assert item["role"] == "user" and [p["type"] for p in item["content"]] == ["input_image"]
    expect(page.locator("#tray li")).to_have_count(0)
    expect(page.locator("#history .user")).to_have_count(2)
    assert page.locator("#history .user").first.locator("img").count() == 1


def test_files_that_are_too_large_to_talk_about_stay(page: Page, server: ScriptedServer) -> None:
    client = talk(page, server)
    page.evaluate(DROP, ["long.mp4", "video/mp4", 12_000_000])
    expect(page.locator("#tray li")).to_have_text(re.compile("long.mp4"))
    client.user_speaks("item_question")
    expect(page.locator("#notices")).to_have_text(re.compile("too large to talk about"))
    expect(page.locator("#tray li")).to_have_count(1)


def test_files_go_with_what_is_said_while_the_button_is_held(
    page: Page, server: ScriptedServer
) -> None:
    page.select_option("#turns", "held")
    client = talk(page, server)
    page.evaluate(DROP, ["film.mp4", "video/mp4", 10])
    expect(page.locator("#tray li")).to_have_text(re.compile("film.mp4"))
    page.locator("#talk").hover()
    page.mouse.down()
    item = client.expect("conversation.item.create")["item"]
    assert [part["type"] for part in item["content"]] == ["input_video"]
    page.mouse.up()


def test_long_video_goes_over_chat(page: Page, server: ScriptedServer) -> None:
    """It is asked about with streamed text and sound, and the talk is told of it."""
    client = talk(page, server)
    pcm = base64.b64encode((tone(0.5) * 32767).astype("<i2").tobytes()).decode()
    audio = [{"id": "audio_1", "transcript": "a red "}, {"data": pcm}, {"transcript": "ball"}]
    chunks = [json.dumps({"choices": [{"delta": {"audio": delta}}]}) for delta in audio]
    page.evaluate(ANSWER_CHAT, [*chunks, "[DONE]"])
    page.evaluate(DROP, ["long.mp4", "video/mp4", 12_000_000])
    expect(page.locator("#tray li")).to_have_text(re.compile("long.mp4"))
    page.fill("#words", "What is it?")
    page.click("#send")
    expect(page.locator(".reply[data-state=over] .caption")).to_have_text("a red ball")
    asked = page.evaluate("asked.messages.at(-1).content[0].video_url.url = '', asked")
    assert asked["modalities"] == ["text", "audio"] and asked["stream"] is True
    assert asked["audio"] == {"voice": "Chelsie", "format": "pcm16"}
    video, text = asked["messages"][-1]["content"]
    assert video["type"] == "video_url" and text == {"type": "text", "text": "What is it?"}
    told = [client.expect("conversation.item.create")["item"] for _ in range(2)]
    assert told[0]["content"][0] == {"type": "input_text", "text": "[video long.mp4]"}
    assert told[1]["content"] == [{"type": "output_text", "text": "a red ball"}]


# ---- history


def test_replay_and_download(page: Page, server: ScriptedServer) -> None:
    client = talk(page, server)
    exchange(client, question="hello", answer="hi", seconds=0.5)
    row = page.locator("[data-id=a1]")
    with page.expect_download() as download:
        row.get_by_role("link", name="Save this reply").click()
    assert download.value.suggested_filename == "reply-1.wav"
    with wave.open(str(download.value.path())) as file:
        saved = np.frombuffer(file.readframes(10**6), "<i2")
    assert np.array_equal(saved, (tone(0.5) * 32767).astype("<i2"))
    row.get_by_role("button", name="Play this reply").click()
    expect(row.locator("button")).to_have_text("Stop")
    expect(row.locator("button")).to_have_text("Play")  # at its end


def test_new_voice_after_a_reply_begins_a_session_that_knows_the_words(
    page: Page, server: ScriptedServer
) -> None:
    client = talk(page, server)
    exchange(client, question="my name is Tom", answer="hello, Tom", seconds=0.2)
    expect(page.locator("[data-id=a1][data-state=over]")).to_be_visible()
    page.select_option("#voice", "Ethan")
    client = server.accept()
    assert "resume" not in client.path
    session = client.expect("session.update")["session"]
    assert session["audio"]["output"]["voice"] == "Ethan"
    items = [client.expect("conversation.item.create")["item"] for _ in range(2)]
    assert [item["content"] for item in items] == [
        [{"type": "input_text", "text": "my name is Tom"}],
        [{"type": "output_text", "text": "hello, Tom"}],
    ]


def test_start_over_forgets(page: Page, server: ScriptedServer) -> None:
    client = talk(page, server)
    exchange(client, question="hello", answer="hi", seconds=3)
    expect(page.locator("[data-id=a1] .caption")).to_have_text("hi")
    page.click("#fresh")
    client = server.accept()
    client.expect("session.update")
    assert client.received.get(timeout=120)["type"] == "input_audio_buffer.append"
    assert page.locator("#history li").count() == 0
    expect(page.locator("#figure-buffer")).to_have_text("0 ms")
