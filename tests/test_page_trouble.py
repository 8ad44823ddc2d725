"""The page on bad days (lost connection, full server, wanted key, no microphone) and for everybody:
phone, keyboard, screen reader, both themes. Its server is played by the test."""

import re
from pathlib import Path
from typing import Any

import pytest
from chromium import PHONE, launch, no_errors, open_page
from playwright.sync_api import Browser, Page, expect
from scripted_server import ScriptedServer, talk, tone

expect.set_options(timeout=120_000)


def notices(page: Page) -> Any:
    return expect(page.locator("#notices"))


# ---- connection


def test_lost_connection_goes_on_where_it_broke(page: Page, server: ScriptedServer) -> None:
    client = talk(page, server)
    client.reply_begins("r1", "a1")
    client.reply_says("r1", "a1", text="one two ", samples=tone(0.5))
    expect(page.locator("[data-id=a1] .caption")).to_have_text(re.compile("one"))
    last = client.last_event
    client.vanish()
    notices(page).to_have_text(re.compile("connection was lost"))
    again = server.accept(session="sess_1")
    assert again.path == f"/v1/realtime?resume=sess_1&after={last}"
    again.reply_says("r1", "a1", text="three four", samples=tone(0.5))
    again.reply_ends("r1", "a1")
    again.expect("input_audio_buffer.append")  # the user is heard again, without a new setup
    expect(page.locator("[data-id=a1][data-state=over] .caption")).to_have_text(
        "one two three four"
    )
    expect(page.locator("#figure-reconnects")).to_have_text("1")
    expect(page.locator("#state")).to_have_text("Connected")
    notices(page).to_have_text("")


@pytest.mark.parametrize("reason", ["gone", "expired"])
def test_session_that_is_over_is_begun_anew_with_its_words(
    page: Page, server: ScriptedServer, reason: str
) -> None:
    client = talk(page, server)
    client.user_speaks("u1")
    client.user_stops("u1", end_ms=400, transcript="my name is Tom")
    expect(page.locator("[data-id=u1] .caption")).to_have_text("my name is Tom")
    if reason == "gone":
        server.refusals = [(1008, "resume_failed")]
        client.vanish()
    else:
        client.send("error", error={"code": "session_expired", "message": "too long"})
        client.close(1000)
    again = server.accept()
    assert again.path == "/v1/realtime"
    again.expect("session.update")
    item = again.expect("conversation.item.create")["item"]
    assert item["content"] == [{"type": "input_text", "text": "my name is Tom"}]
    text = "It was told what was said so far" if reason == "gone" else "too long"
    notices(page).to_have_text(re.compile(text))


def test_full_server_is_asked_again(page: Page, server: ScriptedServer) -> None:
    server.refusals = [(1013, "session_limit_reached")]
    page.click("#talk")
    notices(page).to_have_text(re.compile("The server is full"))
    expect(page.locator("#state")).to_have_text(re.compile("Waiting for a free place"))
    server.accept().expect("input_audio_buffer.append")
    notices(page).to_have_text("")


def test_ended_session_can_be_begun_again(page: Page, server: ScriptedServer) -> None:
    client = talk(page, server)
    client.close(1000)
    notices(page).to_have_text(re.compile("The server ended the conversation"))
    page.get_by_role("button", name="Try again").click()
    again = server.accept()
    assert again.path == "/v1/realtime"
    again.expect("input_audio_buffer.append")
    notices(page).to_have_text("")


def test_server_that_is_gone(browser: Browser) -> None:
    with ScriptedServer() as server:
        page = open_page(browser, server.url)
        expect(page.locator("#voice option")).to_have_count(2)
    page.click("#talk")
    notices(page).to_have_text(re.compile("The server cannot be reached"))
    page.context.close()


def test_errors_of_the_server_are_shown_but_the_harmless(
    page: Page, server: ScriptedServer
) -> None:
    client = talk(page, server)
    harmless = {"code": "response_cancel_not_active", "message": "Cancellation failed"}
    client.send("error", error=harmless)
    client.send("error", error={"code": "invalid_value", "message": "The picture is broken."})
    notices(page).to_have_text(re.compile("The picture is broken."))
    assert "Cancellation" not in page.inner_text("#notices")
    page.get_by_role("button", name="Dismiss").click()
    notices(page).to_have_text("")


def test_key(browser: Browser) -> None:
    with ScriptedServer(key="sk-right") as server:
        page = open_page(browser, server.url)
        notices(page).to_have_text(re.compile("wants an API key"))
        expect(page.locator("#key")).to_be_focused()
        page.fill("#key", "sk-wrong")
        page.click("#talk")
        notices(page).to_have_text(re.compile("does not know this key"))
        page.fill("#key", "sk-right")
        page.keyboard.press("Tab")
        expect(page.locator("#voice option")).to_have_count(2)
        notices(page).to_have_text("")
        server.accept().expect("input_audio_buffer.append")  # what was wanted is done now
        page.context.close()


# ---- devices


def test_denied_devices(browser: Browser, recording: Path, server: ScriptedServer) -> None:
    denying = launch(browser.browser_type, recording, allowed=False)
    page = open_page(denying, server.url)
    page.click("#talk")
    notices(page).to_have_text(re.compile("The microphone is blocked. Allow it"))
    expect(page.locator("#talk")).to_have_attribute("aria-pressed", "false")
    page.click("#camera")
    notices(page).to_have_text(re.compile("The camera is blocked. Allow it"))
    no_errors(page)
    denying.close()


def test_missing_microphone(browser: Browser, server: ScriptedServer) -> None:
    page = open_page(browser, server.url)
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia ="
        " () => Promise.reject(new DOMException('none', 'NotFoundError')); }"
    )
    page.click("#talk")
    notices(page).to_have_text(re.compile("No microphone was found"))
    page.context.close()
    no_errors(page)


# ---- for everybody


def test_everything_has_a_name_and_an_order(page: Page) -> None:
    unnamed = page.locator("button, input, select, textarea, meter, video").evaluate_all(
        "nodes => nodes.filter(n => !n.hidden && !n.labels?.length && !n.ariaLabel"
        " && !n.textContent.trim()).map(n => n.id || n.outerHTML)"
    )
    assert unnamed == []
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    order = []
    while not order or order[-1] != "send":
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
        assert len(order) < 30
    wanted = ["quiet", "fresh", "voice", "persona", "turns", "pauseMs", "interrupt"]
    wanted += ["microphone", "loudspeaker", "key"]
    assert order == [*wanted, "talk", "camera", "screen", "attach", "words", "send"]
    assert page.locator("#notices").get_attribute("role") == "alert"
    assert page.locator("#state").get_attribute("role") == "status"


def test_silent_replies_are_read_out(page: Page, server: ScriptedServer) -> None:
    """A screen reader speaks what no voice speaks, and only that."""
    client = talk(page, server)
    client.reply_begins("r1", "a1")
    client.reply_says("r1", "a1", text="aloud", samples=tone(0.2))
    client.reply_ends("r1", "a1")
    expect(page.locator("[data-id=a1][data-state=over]")).to_be_visible()
    assert page.inner_text("#spoken") == ""
    page.click("#quiet")
    client.reply_begins("r2", "a2", after="a1")
    client.reply_says("r2", "a2", text="silently", samples=tone(0.2))
    client.reply_ends("r2", "a2")
    expect(page.locator("#spoken")).to_have_text("silently")


def test_phone(browser: Browser, server: ScriptedServer) -> None:
    page = open_page(browser, server.url, viewport=PHONE, is_mobile=True, has_touch=True)
    client = talk(page, server)
    client.user_speaks("u1")
    client.user_stops("u1", end_ms=400, transcript="a" * 200)
    expect(page.locator("[data-id=u1] .caption")).to_have_text("a" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    small = page.locator("button:visible").evaluate_all(
        "nodes => nodes.map(n => [n.id, n.getBoundingClientRect()])"
        ".filter(([, box]) => box.width < 44 || box.height < 44).map(([id]) => id)"
    )
    assert small == []
    expect(page.locator("#panel")).to_be_hidden()
    page.tap("#options")
    expect(page.locator("#options")).to_have_attribute("aria-expanded", "true")
    expect(page.locator("#voice")).to_be_visible()
    page.context.close()
    no_errors(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Browser, server: ScriptedServer, scheme: str) -> None:
    """Text on its ground has at least the contrast that WCAG AA asks for, 4.5 to 1."""
    page = open_page(browser, server.url, color_scheme=scheme)
    page.click("#talk")
    client = server.accept()
    client.user_speaks("u1")
    client.user_stops("u1", end_ms=400, transcript="hello")
    client.reply_begins("r1", "a1", after="u1")
    client.reply_says("r1", "a1", text="hi", samples=tone(0.2))
    client.reply_ends("r1", "a1")
    client.send("error", error={"code": "x", "message": "A notice."})
    expect(page.locator("[data-id=a1] .tools button")).to_be_visible()
    places = "#state|#fresh|#talk|h3|.caption|.note|.tools button|.notice span|.help|dt|dd"
    for place in places.split("|"):
        assert page.locator(place).last.evaluate(CONTRAST) >= 4.5, place
    page.context.close()


CONTRAST = """(node) => {
  const paint = (colour) => {
    const pen = new OffscreenCanvas(1, 1).getContext("2d");
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map(
      (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  let ground = node;
  while (!paint(getComputedStyle(ground).backgroundColor)[3]) ground = ground.parentElement;
  const pair = [node, ground].map((n, k) =>
    luminance(paint(getComputedStyle(n)[k ? "backgroundColor" : "color"])));
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}"""


def test_reduced_motion(browser: Browser, server: ScriptedServer) -> None:
    page = open_page(browser, server.url, reduced_motion="reduce")
    expect(page.locator("#strip canvas")).to_be_hidden()
    expect(page.locator("#level")).to_be_visible()
    talk(page, server)
    page.wait_for_function("document.getElementById('level').value > 0.02")
    page.context.close()
    no_errors(page)
