"""A person talks with spark: the page in a real Chromium, a recording as the microphone, the real
server. What it says on bad days is in test_page_trouble.py, every event in test_page_protocol.py,
every sample in test_page_sound.py."""

import base64
import io
import os
import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from chromium import chromium, no_errors, open_page, write_recording
from playwright.sync_api import Browser, Locator, Page, expect

from thinktalk.media.decode import load_audio

ROOT = Path(__file__).parents[1]
QUESTION = ROOT / "examples" / "question.wav"
ANSWER = "the capital of france is paris."
COUNTING = "count from zero to twenty."
RATE_HZ = 24_000

expect.set_options(timeout=300_000)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """`thinktalk serve` with spark, for two at a time."""
    command = [sys.executable, "-m", "thinktalk", "serve", "--port", "0", "--max-sessions", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr is not None
    address = next((m for m in map(re.compile(r"http://\S+").search, server.stderr) if m), None)
    assert address, "the server did not start"
    yield address[0]
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Its user asks examples/question.wav after a second, whenever the microphone is opened."""
    question = load_audio(QUESTION, sample_rate=RATE_HZ)
    pause = np.zeros(RATE_HZ)
    microphone = tmp_path_factory.mktemp("mic") / "mic.wav"
    write_recording(microphone, np.concatenate([pause, question, np.tile(pause, 60)]))
    with chromium(microphone) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    page = open_page(browser, url, init=LISTEN)
    yield page
    page.context.close()
    no_errors(page)


# Listens to what the page gives to the loudspeaker: window.loudness is the RMS of the last 43 ms.
LISTEN = """
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...rest) {
  if (to instanceof AudioDestinationNode) {
    const ear = new AnalyserNode(this.context, {fftSize: 1024});
    const samples = new Float32Array(1024);
    connect.call(this, ear);
    window.loudest = 0;
    setInterval(() => {
      ear.getFloatTimeDomainData(samples);
      window.loudness = Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
      window.loudest = Math.max(window.loudest, window.loudness);
    }, 20);
  }
  return connect.call(this, to, ...rest);
};
"""


def finished(page: Page) -> Locator:
    return page.locator(".reply[data-state=over] .caption")


def say(page: Page, words: str) -> None:
    page.fill("#words", words)
    page.press("#words", "Enter")


def until(page: Page, condition: str) -> None:
    """Waits for a JavaScript expression; the page's policy forbids Playwright's own way."""
    for _ in range(6000):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {condition}")


def test_spoken_question_is_answered_aloud(page: Page) -> None:
    page.click("#talk")
    expect(page.locator(".user .caption")).to_have_text(re.compile(r"\w+ \w+"))
    expect(finished(page)).to_have_text(ANSWER)
    assert page.evaluate("loudest") > 0.02
    expect(page.locator("#figure-latency")).to_have_text(re.compile(r"^\d+ ms$"))
    expect(page.locator("#figure-buffer")).to_have_text("0 ms")
    with page.expect_download() as download:
        page.get_by_role("link", name="Save this reply").click()
    with wave.open(str(download.value.path())) as file:
        spoken = np.frombuffer(file.readframes(10**8), "<i2") / 32768
    assert len(spoken) > RATE_HZ and np.sqrt(np.mean(spoken**2)) > 0.01
    assert page.inner_text("#notices") == ""


def test_interruption(page: Page) -> None:
    """The user asks while the reply still counts: it falls silent, the model forgets the rest and
    answers. What is right in a second turn, today's spark does not always know."""
    say(page, COUNTING)
    counting = page.locator(".reply").first
    expect(counting.locator(".caption")).to_have_text(re.compile("zero"))
    page.click("#talk")
    expect(counting.locator(".note")).to_have_text(re.compile("interrupted"))
    until(page, "loudness < 1e-4")
    assert "twenty" not in counting.locator(".caption").inner_text()
    expect(page.locator(".reply").nth(1).locator(".caption")).to_have_text(re.compile(r"\w+\W+\w+"))
    assert page.inner_text("#notices") == ""


def test_push_to_talk(page: Page) -> None:
    page.select_option("#turns", "held")
    page.click("#talk")
    expect(page.locator("#talk")).to_have_text("Hold to talk")
    level = "document.getElementById('level').value"
    until(page, f"{level} > 0.1")
    page.keyboard.down("Space")  # what was said just before counts, too
    quiet = f"window.quiet = {level} < 0.02 ? (window.quiet ?? 0) + 1 : 0"
    until(page, f"({quiet}) > 10")
    page.keyboard.up("Space")
    expect(finished(page)).to_have_text(ANSWER)


def test_recording(page: Page) -> None:
    page.set_input_files("#files", QUESTION)
    expect(page.locator("#tray li")).to_have_text(re.compile("question.wav"))
    page.click("#send")
    expect(finished(page)).to_have_text(ANSWER)
    assert page.inner_text("#notices") == ""


def test_persona_and_voice(page: Page) -> None:
    page.fill("#persona", "your name is anna.")
    page.select_option("#voice", "Ethan")
    say(page, "what is your name?")
    expect(finished(page)).to_have_text("my name is anna.")
    assert page.locator(".reply h3").inner_text() == "Ethan"


def test_pictures_and_videos(page: Page) -> None:
    """spark may not see well yet, but what it is shown reaches it, the long video over the chat
    API; and what was said about it is known in the talk."""
    film = small_film()
    page.evaluate(DROP, ["short.mp4", base64.b64encode(film).decode(), 0])
    expect(page.locator("#tray li")).to_have_text(re.compile("short.mp4"))
    say(page, "what is this?")
    expect(finished(page)).to_have_text(re.compile(r"\w"))
    page.evaluate(DROP, ["long.mp4", base64.b64encode(film).decode(), 13_000_000])
    expect(page.locator("#tray li")).to_have_text(re.compile("long.mp4"))
    with page.expect_request("**/v1/chat/completions"):
        say(page, "what is this?")
    expect(finished(page).nth(1)).to_have_text(re.compile(r"\w"))
    assert page.inner_text("#notices") == ""


DROP = """([name, base64, padding]) => {
  const film = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const free = new Uint8Array(padding); // a box of an MP4 file that means nothing
  if (padding) {
    new DataView(free.buffer).setUint32(0, padding);
    free.set(new TextEncoder().encode("free"), 4);
  }
  const data = new DataTransfer();
  data.items.add(new File([film, free], name, {type: "video/mp4"}));
  document.body.dispatchEvent(
    new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def small_film() -> bytes:
    """One second of a red picture, as MP4."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as film:
        stream = film.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[..., 0] = 255
        for _ in range(4):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode())
    return file.getvalue()


def test_camera(page: Page) -> None:
    page.click("#camera")
    expect(page.locator("#preview")).to_be_visible()
    page.click("#talk")
    expect(finished(page)).to_have_text(re.compile(r"\w"))
    assert page.inner_text("#notices") == ""


def test_conversation_survives_a_lost_connection(page: Page) -> None:
    say(page, "my name is anna.")
    expect(finished(page)).to_have_text(re.compile("anna"))
    page.context.set_offline(True)
    expect(page.locator("#state")).to_have_text(re.compile("lost"))
    page.context.set_offline(False)
    expect(page.locator("#state")).to_have_text("Connected")
    expect(page.locator("#figure-reconnects")).to_have_text("1")
    say(page, "what is my name?")
    expect(finished(page).nth(1)).to_have_text("your name is anna.")


def test_full_server(browser: Browser, url: str) -> None:
    pages = [open_page(browser, url) for _ in range(3)]
    for page in pages[:2]:
        say(page, "hello.")
        expect(page.locator("#state")).to_have_text("Connected")
    say(pages[2], "hello.")
    expect(pages[2].locator("#notices")).to_have_text(re.compile("The server is full"))
    pages[0].close()
    expect(finished(pages[2])).to_have_text(re.compile("hello"))
    for page in pages:
        page.context.close()
