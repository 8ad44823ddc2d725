"""/v1/realtime/calls: Realtime over WebRTC. Sound and camera travel as tracks, events as a channel.

The server holds the sound that is not played yet, so it knows what was heard: when the user breaks
in, it drops the rest and truncates the reply there by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from thinktalk.media.encode import to_pcm16
from thinktalk.media.mel import VOICE_HZ
from thinktalk.serve.ice import IceServer
from thinktalk.serve.limits import Limits, bounded, in_time
from thinktalk.serve.realtime import GOING_AWAY, Call, Realtime, obey
from thinktalk.serve.realtime_desk import apply, wire_session
from thinktalk.serve.schema import ApiError, new_id

log = logging.getLogger("thinktalk.serve")

CHANNEL = "oai-events"
FRAME_SAMPLES = VOICE_HZ // 50  # 20 ms
CAMERA_EVERY_S = 0.5
CONNECT_S = 30.0
MAX_BUFFERED_BYTES = 1 << 20  # of events, before the sender waits
MAX_SDP_MB = 1.0


class Playback(MediaStreamTrack):
    """The model's voice as a track: what is played waits here and leaves at the pace of time.

    on_event: told output_audio_buffer.started, .stopped and .cleared, and the response. on_cut:
    told the item that was cut off and the milliseconds of it that had left.
    """

    kind = "audio"

    def __init__(self, *, on_event: Callable[[str, str], None], on_cut: Callable[[str, int], None]):
        super().__init__()
        self._on_event, self._on_cut = on_event, on_cut
        self._waiting: deque[tuple[str, str, NDArray[np.float32]]] = deque()
        self._playing: tuple[str, str] | None = None  # response and item
        self._num_played = 0  # samples of that item
        self._finished: set[str] = set()
        self._num_sent, self._began = 0, 0.0

    def play(self, response: str, item: str, samples: NDArray[np.float32]) -> None:
        if len(samples):
            self._waiting.append((response, item, samples))

    def finish(self, response: str) -> None:
        """No more sound comes of this response."""
        self._finished.add(response)

    def clear(self) -> None:
        """Drops what waits; the reply that was playing is cut off."""
        self._waiting.clear()
        if self._playing is None:
            return
        (response, item), self._playing = self._playing, None
        self._on_event("cleared", response)
        self._on_cut(item, 1000 * self._num_played // VOICE_HZ)

    async def recv(self) -> AudioFrame:
        """The next 20 ms, when they are due."""
        self._began = self._began or time.monotonic()
        due = self._began + self._num_sent / VOICE_HZ
        await asyncio.sleep(due - time.monotonic())
        pcm = np.frombuffer(to_pcm16(self._take(FRAME_SAMPLES)), "<i2")[None]
        frame = AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate, frame.pts = VOICE_HZ, self._num_sent
        frame.time_base = Fraction(1, VOICE_HZ)
        self._num_sent += FRAME_SAMPLES
        return frame

    def _take(self, count: int) -> NDArray[np.float32]:
        out = np.zeros(count, np.float32)
        filled = 0
        while filled < count and self._waiting:
            response, item, samples = self._waiting.popleft()
            if self._playing != (response, item):
                self._playing, self._num_played = (response, item), 0
                self._on_event("started", response)
            piece = samples[: count - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._num_played += len(piece)
            if len(piece) < len(samples):
                self._waiting.appendleft((response, item, samples[len(piece) :]))
        if self._playing is not None and not self._waiting and self._playing[0] in self._finished:
            response = self._playing[0]
            self._playing = None
            self._finished.discard(response)
            self._on_event("stopped", response)
        return out


class Calls:
    """The endpoint, and the calls that are going on."""

    def __init__(self, realtime: Realtime, *, ice_servers: Sequence[IceServer] = ()):
        self.realtime, self.ice_servers = realtime, ice_servers
        self.limits: Limits = realtime.limits
        self.going_on: dict[str, Connection] = {}

    async def create(self, request: Request) -> Response:
        """An SDP offer -> the answer, 201, and where the call can be hung up."""
        sdp, session = await self._offer(request)
        setup = request.scope.get("state", {}).get("setup")
        call = await self.realtime.open(self.realtime.first_config(setup), wait=True)
        self.realtime.forget(call)  # cannot be taken up again, by another kind of connection
        del call.state.extras["resume"]
        connection = Connection(
            call, ice_servers=self.ice_servers, on_end=lambda: self.going_on.pop(name, None)
        )
        name = new_id("rtc_")
        self.going_on[name] = connection
        try:
            if session is not None:
                voices = tuple(self.realtime.sessions.engine.voices)
                await apply(call.desk, call.state.config.changed(session, voices=voices))
            answer = await connection.answer(sdp)
        except BaseException:
            call.end(GOING_AWAY)
            raise
        headers = {"Location": f"/v1/realtime/calls/{name}"}
        if self.ice_servers:
            headers["Link"] = ", ".join(server.link() for server in self.ice_servers)
        return Response(answer, 201, headers=headers, media_type="application/sdp")

    async def hang_up(self, request: Request) -> Response:
        name = request.path_params["call_id"]
        if name not in self.going_on:
            raise ApiError(404, f"there is no call {name!r}; it may be over", param="call_id")
        self.going_on[name].call.end(GOING_AWAY)
        return Response(status_code=200)

    def close(self) -> None:
        """Ends all calls, when the server stops."""
        for connection in list(self.going_on.values()):
            connection.call.end(GOING_AWAY)

    async def _offer(self, request: Request) -> tuple[str, Any]:
        """The SDP and the session of an offer, which is a form or the bare SDP."""
        request = bounded(request, max_mb=MAX_SDP_MB)
        async with in_time(self.limits):
            if not request.headers.get("content-type", "").startswith("multipart/form-data"):
                return (await request.body()).decode("utf-8", "replace"), None
            async with request.form(max_files=2, max_fields=4) as form:
                texts = {
                    key: value if isinstance(value, str) else (await value.read()).decode()
                    for key, value in form.multi_items()
                }
        if "sdp" not in texts:
            raise ApiError(400, "sdp is missing: give an offer", code="missing", param="sdp")
        try:
            return texts["sdp"], json.loads(texts["session"]) if "session" in texts else None
        except ValueError:
            raise ApiError(400, "session is not JSON; send one object", param="session") from None


class Connection:
    """One peer: its tracks, its channel, and the call they belong to."""

    def __init__(self, call: Call, *, ice_servers: Sequence[IceServer], on_end: Callable[[], Any]):
        self.call, self._on_end = call, on_end
        servers = [RTCIceServer(**server.wire()) for server in ice_servers]
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self.playback = Playback(on_event=self._playback_event, on_cut=self._cut)
        call.state.player = self.playback
        self._tasks: set[asyncio.Task[None]] = set()
        self._commands: asyncio.Queue[str] = asyncio.Queue()
        self.peer.on("track", self._on_track)
        self.peer.on("datachannel", self._on_channel)
        self.peer.on("connectionstatechange", self._on_state)
        self._run(self._until_over())

    async def answer(self, sdp: str) -> str:
        """Raises ApiError for an offer that is none."""
        try:
            offer = RTCSessionDescription(sdp=sdp, type="offer")
            await self.peer.setRemoteDescription(offer)
            self.peer.addTrack(self.playback)
            await self.peer.setLocalDescription(await self.peer.createAnswer())
        except Exception:  # aiortc raises whatever its parser stumbles over
            message = "sdp is not an offer with sound; send that of a peer with an audio track"
            raise ApiError(400, message, param="sdp") from None
        return self.peer.localDescription.sdp

    async def _until_over(self) -> None:
        """Ends the call if nobody connects, and the peer when the call is over."""
        try:
            async with asyncio.timeout(CONNECT_S):
                while self.peer.connectionState not in ("connected", "closed", "failed"):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.call.end(GOING_AWAY)
        await self.call.closed
        self._on_end()
        self.playback.stop()
        await self.peer.close()
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    def _on_state(self) -> None:
        if self.peer.connectionState in ("closed", "failed"):
            self.call.end(GOING_AWAY)

    # ---- events

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label != CHANNEL:
            return
        channel.on("message", lambda text: self._commands.put_nowait(text))
        hello = {"type": "session.created", "event_id": new_id("event_")}
        channel.send(json.dumps({**hello, "session": wire_session(self.call.desk)}))

        async def send(text: str) -> None:
            while channel.bufferedAmount > MAX_BUFFERED_BYTES:
                await asyncio.sleep(0.01)
            channel.send(text)

        self._run(self.call.state.outbox.run(send))
        self._run(self._receive())

    async def _receive(self) -> None:
        while True:
            text = await self._commands.get()
            await obey(self.call, text if isinstance(text, str) else None)

    def _playback_event(self, name: str, response: str) -> None:
        self.call.state.emit(f"output_audio_buffer.{name}", response_id=response)

    def _cut(self, item: str, heard_ms: int) -> None:
        self.call.state.truncates.append((item, heard_ms))
        self.call.desk.session.truncate(item, heard_ms)

    # ---- tracks

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._run(self._listen(track) if track.kind == "audio" else self._watch(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        resampler = AudioResampler(format="s16", layout="mono", rate=VOICE_HZ)
        while True:
            frame = await track.recv()
            assert isinstance(frame, AudioFrame)
            for low in resampler.resample(frame):
                self.call.desk.hear(low.to_ndarray()[0])

    async def _watch(self, track: MediaStreamTrack) -> None:
        """Two frames a second of a camera or screen."""
        last = 0.0
        while True:
            frame = await track.recv()
            if time.monotonic() - last >= CAMERA_EVERY_S and isinstance(frame, VideoFrame):
                last = time.monotonic()
                image = await asyncio.to_thread(frame.to_ndarray, format="rgb24")
                desk = self.call.desk
                desk.session.push_image(image, time_s=desk.now_ms / 1000)

    def _run(self, work: Any) -> None:
        async def guarded() -> None:
            try:
                await work
            except (MediaStreamError, asyncio.CancelledError):
                pass
            except Exception:
                log.exception("call %s failed", self.call.id)
                self.call.end(GOING_AWAY)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
