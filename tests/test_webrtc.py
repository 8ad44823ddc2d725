"""Realtime over WebRTC: a peer with a microphone and a camera calls the server over the loopback
interface; a scripted engine stands in for the model."""

import asyncio
import json
import threading
import urllib.request
from collections.abc import Iterator
from fractions import Fraction
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, VideoStreamTrack
from av.audio.frame import AudioFrame
from openai import OpenAI
from realtime_client import check, is_subsequence, tone
from scripted_engine import ScriptedEngine
from scripted_steps import Say, Sing, Wait, until
from serving import serving

from thinktalk.serve.app import ServeOptions
from thinktalk.serve.webrtc import FRAME_SAMPLES, Playback

RATE_HZ = 48_000


@pytest.fixture
def url(engine: ScriptedEngine) -> Iterator[str]:
    with serving(engine) as address:
        yield address
    until(lambda: not engine.sessions)


class Microphone(AudioStreamTrack):
    """Says what is given to `say`, silence otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.wave = np.zeros(0)
        self.sent = 0

    def say(self, seconds: float) -> None:
        self.wave = 0.5 * np.sin(np.arange(round(seconds * RATE_HZ)) * 0.05)

    async def recv(self) -> AudioFrame:
        await super().recv()  # for its pace
        count = RATE_HZ // 50
        piece, self.wave = self.wave[:count], self.wave[count:]
        piece = np.pad(piece, (0, count - len(piece)))
        samples = (piece * 32_767).astype("<i2")[None]
        frame = AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE_HZ, self.sent
        frame.time_base = Fraction(1, RATE_HZ)
        self.sent += count
        return frame


class Caller:
    """A peer: `async with Caller(url) as caller`."""

    def __init__(self, url: str, *, session: dict[str, Any] | None = None, camera: bool = False):
        self.url, self.session = url, session
        self.peer, self.microphone = RTCPeerConnection(), Microphone()
        self.peer.addTrack(self.microphone)
        if camera:
            self.peer.addTrack(VideoStreamTrack())
        self.channel = self.peer.createDataChannel("oai-events")
        self.channel.on("message", lambda text: self.inbox.put_nowait(json.loads(text)))
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.seen: list[dict[str, Any]] = []
        self.heard: list[np.ndarray] = []
        self.peer.on("track", lambda track: asyncio.ensure_future(self._listen(track)))

    async def __aenter__(self) -> "Caller":
        await self.peer.setLocalDescription(await self.peer.createOffer())
        sdk = OpenAI(api_key="none", base_url=f"{self.url}/v1", max_retries=0)
        fields: Any = {"session": self.session} if self.session else {}
        create = sdk.realtime.calls.create
        reply = await asyncio.to_thread(create, sdp=self.peer.localDescription.sdp, **fields)
        self.location = reply.response.headers["location"]
        answer = RTCSessionDescription(sdp=reply.text, type="answer")
        await self.peer.setRemoteDescription(answer)
        await self.until("session.created")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.peer.close()

    def send(self, kind: str, **fields: Any) -> None:
        self.channel.send(json.dumps({"type": kind, **fields}))

    async def until(self, kind: str) -> dict[str, Any]:
        while True:
            event = await self.inbox.get()
            check(event)
            assert event["type"] != "error" or kind == "error", event
            self.seen.append(event)
            if event["type"] == kind:
                return event

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.seen]

    async def _listen(self, track: Any) -> None:
        while True:
            frame = await track.recv()
            self.heard.append(frame.to_ndarray()[0, ::2])

    def loudness(self) -> float:
        return float(np.abs(np.concatenate(self.heard)).max()) if self.heard else 0.0


def test_a_spoken_turn(engine: ScriptedEngine, url: str) -> None:
    async def talk() -> None:
        session = {"type": "realtime", "instructions": "be kind"}
        async with Caller(url, session=session, camera=True) as caller:
            told = caller.seen[0]["session"]
            assert told["instructions"] == "be kind" and "resume" not in told
            caller.microphone.say(0.5)
            await caller.until("output_audio_buffer.stopped")
            kinds = caller.kinds()
            assert is_subsequence(
                [
                    "input_audio_buffer.speech_started",
                    "input_audio_buffer.speech_stopped",
                    "input_audio_buffer.committed",
                    "response.created",
                    "response.content_part.added",
                    "output_audio_buffer.started",
                    "output_audio_buffer.stopped",
                ],
                kinds,
            )
            assert "response.done" in kinds and "response.output_audio.delta" not in kinds
            assert caller.loudness() > 3000
            session = engine.opened[-1]
            assert session.frames and session.frames[0][0].shape == (480, 640, 3)
            times = [time_s for _, time_s in session.frames]
            assert times == sorted(times)  # type: ignore[type-var]

    asyncio.run(talk())
    until(lambda: not engine.sessions)  # the peer has gone, and so has its session


def test_breaking_in_truncates_what_was_not_heard(engine: ScriptedEngine, url: str) -> None:
    engine.script = lambda _: (Say("a long story"), Sing(20_000))

    async def talk() -> None:
        async with Caller(url) as caller:
            caller.microphone.say(0.3)
            started = await caller.until("output_audio_buffer.started")
            caller.microphone.say(0.3)  # everything was sent; most of it is not played yet
            await caller.until("conversation.item.truncated")
            kinds = caller.kinds()
            assert kinds.count("input_audio_buffer.speech_started") == 2
            assert kinds[-2:] == ["output_audio_buffer.cleared", "conversation.item.truncated"]
            assert caller.seen[-2]["response_id"] == started["response_id"]
            assert 0 < caller.seen[-1]["audio_end_ms"] < 10_000

    asyncio.run(talk())


def test_clearing_what_plays(engine: ScriptedEngine, url: str) -> None:
    engine.script = lambda _: (Say("a"), Sing(20_000), Wait(threading.Event()))

    async def talk() -> None:
        async with Caller(url) as caller:
            caller.send("response.create")
            await caller.until("output_audio_buffer.started")
            caller.send("response.cancel")
            caller.send("output_audio_buffer.clear")
            await caller.until("output_audio_buffer.cleared")
            await caller.until("conversation.item.truncated")
            assert "response.done" in caller.kinds()
            request = urllib.request.Request(f"{url}{caller.location}/hangup", method="POST")
            await asyncio.to_thread(urllib.request.urlopen, request)

    asyncio.run(talk())


@pytest.mark.parametrize("body", [b"", b"nonsense", b"v=0\r\n", b"\xff" * 100])
def test_offers_that_are_none(engine: ScriptedEngine, url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/sdp"}
    request = urllib.request.Request(f"{url}/v1/realtime/calls", body, headers)
    with pytest.raises(HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    until(lambda: not engine.sessions)


def test_keys_hold_for_calls_too() -> None:
    with serving(ScriptedEngine(), ServeOptions(keys=("secret",))) as url:
        request = urllib.request.Request(f"{url}/v1/realtime/calls", b"v=0")
        with pytest.raises(HTTPError, match="401"):
            urllib.request.urlopen(request)
        request = urllib.request.Request(f"{url}/v1/realtime/calls/rtc_x/hangup", b"")
        request.add_header("Authorization", "Bearer secret")
        with pytest.raises(HTTPError, match="404"):
            urllib.request.urlopen(request)


def test_playback_plays_everything_once() -> None:
    events: list[tuple[str, str]] = []
    cuts: list[tuple[str, int]] = []

    async def play() -> np.ndarray:
        playback = Playback(
            on_event=lambda name, response: events.append((name, response)),
            on_cut=lambda item, ms: cuts.append((item, ms)),
        )
        wave = tone(0.1).astype(np.float32)
        for start in range(0, len(wave), 700):
            playback.play("r1", "i1", wave[start : start + 700])
        playback.finish("r1")
        frames = [(await playback.recv()).to_ndarray()[0] for _ in range(6)]
        playback.play("r2", "i2", wave)
        frames.append((await playback.recv()).to_ndarray()[0])
        playback.clear()
        frames.append((await playback.recv()).to_ndarray()[0])
        return np.concatenate(frames)

    heard = asyncio.run(play())
    wave = np.round(tone(0.1).astype(np.float32) * 32_768)
    assert np.abs(heard[:2400] - wave).max() <= 1 and not heard[2400:2880].any()
    assert np.abs(heard[2880:3360] - wave[:480]).max() <= 1 and not heard[3360:].any()
    assert events == [("started", "r1"), ("stopped", "r1"), ("started", "r2"), ("cleared", "r2")]
    assert cuts == [("i2", 1000 * FRAME_SAMPLES // 24_000)]
