"""The page's sound, number by number, in a real browser: resampler, microphone and loudspeaker
worklets (rendered offline, so that nothing depends on speed), WAV files."""

import io
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from chromium import chromium, no_errors, open_page, write_recording
from playwright.sync_api import Page
from scripted_server import RATE_HZ, ScriptedServer, tone


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    silence = write_recording(tmp_path_factory.mktemp("mic") / "mic.wav", np.zeros(2400))
    with ScriptedServer() as server, chromium(silence) as browser:
        page = open_page(browser, server.url)
        yield page
        no_errors(page)


# ---- resampler

RESAMPLE = """
async ({rate, samples, sizes}) => {
  const { Resampler } = await import(new URL("resampler.js", document.baseURI));
  const resampler = new Resampler(rate, 24000);
  const out = [];
  for (let at = 0, k = 0; at < samples.length; k++) {
    const size = sizes[k % sizes.length];
    out.push(...resampler.push(Float32Array.from(samples.slice(at, at + size))));
    at += size;
  }
  return out;
}
"""


def resample(page: Page, wave_: np.ndarray, rate: int, sizes: list[int]) -> np.ndarray:
    given = {"rate": rate, "samples": wave_.tolist(), "sizes": sizes}
    return np.array(page.evaluate(RESAMPLE, given))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000, 96_000])
def test_resampled_tone(page: Page, rate: int) -> None:
    """A tone stays the tone it is, in time with the original."""
    heard = np.sin(2 * np.pi * 1000 * np.arange(rate // 10) / rate)
    out = resample(page, heard, rate, [128])
    ideal = np.sin(2 * np.pi * 1000 * np.arange(len(out)) / RATE_HZ)
    inner = slice(200, len(out) - 200)
    assert abs(len(out) - 0.1 * RATE_HZ) < 0.01 * RATE_HZ
    assert np.abs(out - ideal)[inner].max() < 2e-3


def test_resampler_lets_nothing_alias(page: Page) -> None:
    heard = np.sin(2 * np.pi * 15_000 * np.arange(4800) / 48_000)  # above 12 kHz
    assert np.abs(resample(page, heard, 48_000, [128])[100:-100]).max() < 2e-3


def test_resampler_knows_no_pieces(page: Page) -> None:
    noise = np.random.default_rng(0).standard_normal(3000)
    whole = resample(page, noise, 44_100, [3000])
    for sizes in ([1], [128], [7, 500, 3]):
        assert np.array_equal(resample(page, noise, 44_100, sizes), whole)


# ---- microphone

CAPTURE = """
async ({rate, samples}) => {
  const context = new OfflineAudioContext(1, samples.length, rate);
  await context.audioWorklet.addModule("mic_worklet.js");
  const buffer = new AudioBuffer({length: samples.length, sampleRate: rate});
  buffer.copyToChannel(Float32Array.from(samples), 0);
  const source = new AudioBufferSourceNode(context, {buffer});
  const node = new AudioWorkletNode(context, "capture");
  const frames = [];
  node.port.onmessage = ({data}) => frames.push({pcm: [...data.pcm], level: data.level});
  source.connect(node).connect(context.destination);
  source.start();
  await context.startRendering();
  await new Promise((resolve) => setTimeout(resolve, 50));  // the last messages
  return frames;
}
"""


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_microphone_frames(page: Page, rate: int) -> None:
    """Frames of 20 ms, PCM16 at 24 kHz, of the sound that was captured, with its level."""
    heard = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    frames = page.evaluate(CAPTURE, {"rate": rate, "samples": heard.tolist()})
    assert 48 <= len(frames) <= 50
    assert all(len(frame["pcm"]) == 480 for frame in frames)
    pcm = np.concatenate([frame["pcm"] for frame in frames])
    ideal = 0.5 * 32767 * np.sin(2 * np.pi * 440 * np.arange(len(pcm)) / RATE_HZ)
    assert np.abs(pcm - ideal)[500:].max() < 100
    assert frames[10]["level"] == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


# ---- loudspeaker

PLAY = """
async ({seconds, script}) => {
  const context = new OfflineAudioContext(1, seconds * 24000, 24000);
  await context.audioWorklet.addModule("speaker_worklet.js");
  const node = new AudioWorkletNode(context, "playback",
                                    {numberOfInputs: 0, outputChannelCount: [1]});
  const told = [];
  node.port.onmessage = ({data}) => told.push(data);
  node.connect(context.destination);
  const send = (message) => {
    if (message.samples) message = {...message, samples: Float32Array.from(message.samples), at: 0};
    node.port.postMessage(message);
  };
  for (const {at, messages} of script) {
    if (at === 0) { messages.forEach(send); continue; }
    context.suspend(at).then(async () => {
      messages.forEach(send);
      await new Promise((resolve) => setTimeout(resolve, 30));  // let it reach the audio thread
      context.resume();
    });
  }
  await new Promise((resolve) => setTimeout(resolve, 30));
  const buffer = await context.startRendering();
  await new Promise((resolve) => setTimeout(resolve, 50));
  return {sound: [...buffer.getChannelData(0)], told};
}
"""


def play(page: Page, seconds: float, script: list[tuple[float, dict[str, Any]]]):
    """Messages at their times -> (float [n] that came out, what the worklet told)."""
    steps: dict[float, list[dict[str, Any]]] = {}
    for at, message in script:
        steps.setdefault(at, []).append(message)
    given = [{"at": at, "messages": messages} for at, messages in steps.items()]
    result = page.evaluate(PLAY, {"seconds": seconds, "script": given})
    return np.array(result["sound"]), result["told"]


def sound(item: str, seconds: float, *, hz: float = 440.0) -> dict[str, Any]:
    return {"item": item, "samples": tone(seconds, hz=hz).tolist()}


def end(item: str) -> dict[str, Any]:
    return {"item": item, "end": True}


def clicks(wave_: np.ndarray, *, hz: float = 440.0) -> float:
    """The largest step between samples, as a multiple of a tone's own largest step."""
    return np.abs(np.diff(wave_)).max() / (0.4 * 2 * np.pi * hz / RATE_HZ)


def test_reply_is_played_as_it_is(page: Page) -> None:
    out, told = play(page, 1, [(0, sound("a", 0.5)), (0, end("a"))])
    assert np.abs(out[144 : 12_000 - 144] - tone(0.5)[144:-144]).max() < 1e-6
    assert not out[12_000:].any()
    assert clicks(out) < 1.1
    order = [key for message in told for key in ("started", "ended") if key in message]
    assert order == ["started", "ended"]
    assert dict(next(m for m in told if "ended" in m)["played"]) == {"a": 12_000}
    assert told[-1]["underruns"] == 0


def test_little_sound_waits_for_more_unless_it_is_all(page: Page) -> None:
    out, told = play(page, 0.5, [(0, sound("a", 0.02))])
    assert not out.any() and not any("started" in message for message in told)
    out, _ = play(page, 0.5, [(0, sound("a", 0.02)), (0.2, end("a"))])
    begins = np.flatnonzero(out)[0] / RATE_HZ
    assert 0.19 < begins < 0.25


def test_interruption_is_quick_and_does_not_click(page: Page) -> None:
    out, told = play(page, 1, [(0, sound("a", 0.9)), (0.3, {"stop": 1})])
    silent_at = np.flatnonzero(out)[-1] / RATE_HZ
    assert 0.3 < silent_at < 0.32
    assert clicks(out) < 1.2
    stopped = next(message for message in told if message.get("stopped") == 1)
    assert dict(stopped["played"])["a"] == pytest.approx(silent_at * RATE_HZ, abs=200)


def test_after_an_interruption_the_next_reply_plays(page: Page) -> None:
    script = [(0, sound("a", 0.9)), (0.2, {"stop": 1}), (0.4, sound("b", 0.3)), (0.4, end("b"))]
    out, told = play(page, 1, script)
    assert not out[int(0.25 * RATE_HZ) : int(0.39 * RATE_HZ)].any()
    assert dict(next(m for m in told if m.get("ended") == "b")["played"]) == {"b": 7200}


def test_running_dry_is_counted_and_does_not_click(page: Page) -> None:
    script = [(0, sound("a", 0.2)), (0.5, sound("a", 0.3)), (0.5, end("a"))]
    out, told = play(page, 1.2, script)
    report = [message for message in told if "underruns" in message][-1]
    assert report["underruns"] == 1
    assert report["gap"] / RATE_HZ == pytest.approx(0.3, abs=0.03)
    assert clicks(out) < 1.2
    assert dict(next(m for m in told if m.get("ended") == "a")["played"]) == {"a": 12_000}


# ---- files


def test_saved_wav(page: Page) -> None:
    samples = [0, 1, -1, 32767, -32768, 1234]
    script = """async (samples) => {
      const { wavBytes } = await import(new URL("sound.js", document.baseURI));
      return [...wavBytes(Int16Array.from(samples))];
    }"""
    with wave.open(io.BytesIO(bytes(page.evaluate(script, samples)))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE_HZ)
        assert np.frombuffer(file.readframes(99), "<i2").tolist() == samples


def test_base64_both_ways(page: Page) -> None:
    script = """async () => {
      const { encodePcm, decodePcm } = await import(new URL("sound.js", document.baseURI));
      const samples = Int16Array.from({length: 70001}, (_, k) => (k * 7919) % 65536 - 32768);
      const back = decodePcm(encodePcm(samples));
      return back.length === samples.length && back.every((value, k) => value === samples[k]);
    }"""
    assert page.evaluate(script)
