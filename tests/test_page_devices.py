"""Which microphone, loudspeaker and camera the page uses: chosen, remembered, exchanged while one
talks. Chromium's fake devices have names; the page's server is played by the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import no_errors, open_page, write_recording
from playwright.sync_api import Browser, Page, expect
from scripted_server import Client, ScriptedServer, tone

expect.set_options(timeout=120_000)

# window.heard, .seen: labels of the tracks that the page was given; window.contexts: of its sound.
WATCH = """
window.heard = [], window.seen = [], window.contexts = [];
const ask = MediaDevices.prototype.getUserMedia;
MediaDevices.prototype.getUserMedia = async function (constraints) {
  const stream = await ask.call(this, constraints);
  window.heard.push(...stream.getAudioTracks());
  window.seen.push(...stream.getVideoTracks());
  return stream;
};
window.AudioContext = class extends AudioContext {
  constructor(options) {
    super(options);
    window.contexts.push(this);
  }
};
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Longer than that of other tests: the microphone is exchanged."""
    return write_recording(tmp_path_factory.mktemp("mic") / "mic.wav", tone(60, hz=300))


@pytest.fixture
def page(browser: Browser, server: ScriptedServer) -> Iterator[Page]:
    page = open_page(browser, server.url, init=WATCH)
    yield page
    assert page.inner_text("#notices") == ""
    page.context.close()
    no_errors(page)


def talk(page: Page, server: ScriptedServer) -> Client:
    page.click("#talk")
    client = server.accept()
    client.expect("input_audio_buffer.append")
    return client


def choose(page: Page, field: str, number: int) -> str:
    """Picks a device of a list, which has names by now; returns its name."""
    option = page.locator(f"#{field} option").nth(number)
    expect(option).not_to_have_text("")
    name = option.inner_text()
    page.select_option(f"#{field}", label=name)
    return name


def labels(page: Page, kind: str) -> list[str]:
    return page.evaluate(f"{kind}.map((track) => track.label)")


def test_microphone(page: Page, server: ScriptedServer) -> None:
    client = talk(page, server)
    other = choose(page, "microphone", 2)
    expect(page.locator("#talk")).to_have_text("Stop talking")
    page.wait_for_function("heard.length === 2")
    first, second = labels(page, "heard")
    assert first != second == other
    assert page.evaluate("heard.map((track) => track.readyState)") == ["ended", "live"]
    while not client.received.empty():
        client.received.get()
    client.expect("input_audio_buffer.append")  # in the same conversation
    page.reload()
    talk(page, server)
    assert labels(page, "heard") == [other]
    expect(page.locator("#microphone option:checked")).to_have_text(other)


def test_microphone_that_is_gone(page: Page, server: ScriptedServer) -> None:
    """The browser chooses; what was chosen is remembered in case it comes back."""
    chosen = '{"devices": {"microphone": "unplugged", "loudspeaker": "unplugged"}}'
    page.evaluate(f"localStorage.setItem('thinktalk', '{chosen}')")
    page.reload()
    talk(page, server)
    assert len(labels(page, "heard")) == 1
    for name in ("microphone", "loudspeaker"):
        expect(page.locator(f"#{name} option:checked")).to_have_text("as the browser chooses")
    page.uncheck("#interrupt")
    kept = page.evaluate("JSON.parse(localStorage.getItem('thinktalk')).devices")
    assert kept["microphone"] == kept["loudspeaker"] == "unplugged"


def test_loudspeaker(page: Page, server: ScriptedServer) -> None:
    sinks = "contexts.filter((c) => c.sampleRate === 24000).map((c) => c.sinkId)"

    def uses(device: str) -> None:
        page.wait_for_function(f"(device) => String({sinks}) === device", arg=device)

    talk(page, server)
    assert page.evaluate(sinks) == [""]
    name = choose(page, "loudspeaker", 2)
    device = page.input_value("#loudspeaker")
    uses(device)
    page.reload()
    talk(page, server)
    uses(device)
    expect(page.locator("#loudspeaker option:checked")).to_have_text(name)


def test_no_choice_of_loudspeaker(browser: Browser, server: ScriptedServer) -> None:
    page = open_page(browser, server.url, init="delete AudioContext.prototype.setSinkId")
    talk(page, server)
    expect(page.locator("#microphone")).to_be_visible()
    expect(page.locator("#loudspeaker")).to_be_hidden()
    page.context.close()
    no_errors(page)


def test_cameras(page: Page) -> None:
    page.get_by_role("button", name="Camera", exact=True).click()
    flip = page.get_by_role("button", name="Switch camera")
    expect(flip).to_be_visible()
    flip.click()
    flip.click()  # no click is lost while a camera opens
    page.wait_for_function("seen.length === 3")
    first, second, third = labels(page, "seen")
    assert first == third != second
    assert page.evaluate("seen.map((track) => track.readyState)") == ["ended", "ended", "live"]
    assert page.evaluate("preview.srcObject.getVideoTracks()[0] === seen[2]")
    flip.click()
    expect(page.locator("#seen")).to_have_text("Camera on")
    page.wait_for_function("seen.length === 4")
    page.get_by_role("button", name="Camera", exact=True).click()
    expect(flip).to_be_hidden()
    page.reload()
    page.get_by_role("button", name="Camera", exact=True).click()
    expect(flip).to_be_visible()
    assert labels(page, "seen") == [second]


def test_a_screen_is_not_switched(page: Page) -> None:
    page.click("#screen")
    expect(page.locator("#preview")).to_be_visible()
    expect(page.locator("#flip")).to_be_hidden()
