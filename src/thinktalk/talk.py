"""A client: plays a recording into a running server in real time, as a microphone would.

Speaks OpenAI's Realtime dialect over a WebSocket. Prints what both sides say and how long the
answer takes; with many sessions at once it is the load tool. Latencies are seconds; "wire" counts
from the server's word that the turn is over, "ear" from the last voiced sample of the recording,
which includes the silence that the server waits for.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from thinktalk.media.decode import load_audio
from thinktalk.media.encode import FULL_SCALE, encode, to_pcm16
from thinktalk.media.mel import VOICE_HZ

STEP_S = 0.04  # of sound in one message
VOICED_LEVEL = 0.02  # full scale is 1
STAGGER_S = 0.1  # between the beginnings of sessions
MAX_EVENT_BYTES = 16 << 20


@dataclass
class Turn:
    """What one question came to. Times are of time.perf_counter."""

    voice_ended: float = 0.0
    turn_ended: float = 0.0
    first_text: float | None = None
    first_audio: float | None = None
    played_until: float = 0.0
    underrun_s: float = 0.0
    said: str = ""
    heard: str = ""
    sound: list[bytes] = field(default_factory=list)
    status: str = ""

    def take(self, event: dict[str, Any]) -> bool:
        """Notes an event; True when the reply is over."""
        now = time.perf_counter()
        match event["type"]:
            case "input_audio_buffer.speech_stopped" | "input_audio_buffer.committed":
                self.turn_ended = self.turn_ended or now
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                self.first_text = self.first_text or now
                self.said += event["delta"]
            case "response.output_audio.delta":
                self._play(base64.b64decode(event["delta"]), now)
            case "conversation.item.input_audio_transcription.completed":
                self.heard = event["transcript"]
            case "response.done":
                self.status = event["response"]["status"]
                return True
        return False

    def _play(self, data: bytes, now: float) -> None:
        """Plays on paper: sound that comes after the sound before it was over is an underrun."""
        if self.first_audio is None:
            self.first_audio = self.played_until = now
        self.underrun_s += max(0.0, now - self.played_until)
        self.played_until = max(self.played_until, now) + len(data) / 2 / VOICE_HZ
        self.sound.append(data)

    def latencies(self) -> dict[str, float]:
        found: dict[str, float] = {}
        if self.first_text is not None:
            found["first text"] = self.first_text - self.turn_ended
        if self.first_audio is not None:
            found["first audio (wire)"] = self.first_audio - self.turn_ended
            found["first audio (ear)"] = self.first_audio - self.voice_ended
            found["underrun"] = self.underrun_s
        return found


@dataclass(frozen=True)
class Script:
    """What every session does."""

    url: str
    key: str
    wave: NDArray[np.float32]  # [n] at 24 kHz
    voice: str | None
    detect: bool
    turns: int
    verbose: bool


def run(
    recording: str,
    *,
    url: str,
    key: str = "",
    out: Path | None = None,
    voice: str | None = None,
    detect: bool = True,
    sessions: int = 1,
    turns: int = 1,
) -> list[Turn]:
    """Plays the recording to a server and prints what happens; returns the turns.

    detect: let the server find the end of the turn. out: where to save the first answer. Raises
    ValueError for a recording that cannot be read, and for a server that refuses all sessions.
    """
    if sessions < 1 or turns < 1:
        raise ValueError("sessions and turns must be at least 1")
    wave = load_audio(recording, sample_rate=VOICE_HZ)
    script = Script(socket_url(url), key, wave, voice, detect, turns, sessions == 1)
    results = asyncio.run(_all(script, sessions))
    turns_done = [turn for turns, _ in results for turn in turns]
    errors = [error for _, error in results if error]
    for error in sorted(set(errors)):
        print(f"{errors.count(error)} of {sessions} sessions failed: {error}", file=sys.stderr)
    if not turns_done:
        raise ValueError(f"no answer from {url}: {errors[0] if errors else 'it said nothing'}")
    print_latencies(turns_done, sessions=sessions)
    if out is not None:
        save(turns_done[0], out)
    return turns_done


def socket_url(url: str) -> str:
    """http://host:port -> ws://host:port/v1/realtime"""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.netloc:
        raise ValueError(f"{url} is no server's address; give one such as http://127.0.0.1:8000")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/realtime"
    return urlunsplit((scheme, parts.netloc, path, urlencode({"model": "thinktalk"}), ""))


def save(turn: Turn, out: Path) -> None:
    """Writes an answer in the format of the file's name. Raises ValueError if it has no sound."""
    samples = np.frombuffer(b"".join(turn.sound), "<i2").astype(np.float32)
    if not len(samples):
        raise ValueError(f"{out}: there is no sound to save")
    format = out.suffix.lstrip(".").lower() or "wav"
    out.write_bytes(encode(samples / np.float32(FULL_SCALE), format=format))
    print(f"{out}: {len(samples) / VOICE_HZ:.2f} s", file=sys.stderr)


def print_latencies(turns: list[Turn], *, sessions: int) -> None:
    """The figures of one turn, or the distribution over many."""
    found = [turn.latencies() for turn in turns]
    if sessions > 1:
        done = sum(turn.status == "completed" for turn in turns)
        print(f"{sessions} sessions, {len(turns)} turns, {done} completed")
    for name in found[0]:
        values = sorted(times[name] for times in found if name in times)
        line = f"{name:20} p50 {quantile(values, 0.5):7.3f} s"
        if len(values) > 1:
            line += f"   p95 {quantile(values, 0.95):7.3f} s   most {values[-1]:7.3f} s"
        print(line)


def quantile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of the sorted values does not exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


async def _all(script: Script, sessions: int) -> list[tuple[list[Turn], str]]:
    return await asyncio.gather(*(_session(script, number) for number in range(sessions)))


async def _session(script: Script, number: int) -> tuple[list[Turn], str]:
    """One session after the other's beginning: its turns, and why it ended early, if it did."""
    await asyncio.sleep(number * STAGGER_S)
    turns: list[Turn] = []
    headers = {"Authorization": f"Bearer {script.key}"} if script.key else {}
    try:
        async with connect(
            script.url, additional_headers=headers, max_size=MAX_EVENT_BYTES, compression=None
        ) as socket:
            await _greet(script, socket)
            for _ in range(script.turns):
                turns.append(await _turn(script, socket))
    except (OSError, InvalidHandshake, TimeoutError) as error:
        return turns, f"{script.url.split('?')[0]}: {error}"
    except ConnectionClosed as error:
        return turns, f"the server closed the connection ({error})"
    except RefusedError as error:
        return turns, str(error)
    return turns, ""


class RefusedError(Exception):
    """The server does not do what the script asks for."""


async def _greet(script: Script, socket: ClientConnection) -> None:
    event = json.loads(await socket.recv())
    if event["type"] == "error":
        raise RefusedError(event["error"]["message"])
    if script.verbose:
        print(f"session {event['session']['id']} with {event['session']['model']}")
    await _send(socket, "session.update", session=_setup(script))


def _setup(script: Script) -> dict[str, Any]:
    turns = {"type": "server_vad"} if script.detect else None
    audio: dict[str, Any] = {
        "input": {"turn_detection": turns, "transcription": {"model": "thinktalk"}}
    }
    if script.voice:
        audio["output"] = {"voice": script.voice}
    return {"type": "realtime", "audio": audio}


async def _turn(script: Script, socket: ClientConnection) -> Turn:
    """Speaks the recording, then listens until the reply is over."""
    turn = Turn()
    microphone = asyncio.create_task(_speak(script, socket, turn))
    try:
        while True:
            event = json.loads(await socket.recv())
            if event["type"] == "error":
                raise RefusedError(event["error"]["message"])
            over = turn.take(event)
            if script.verbose:
                _print_caption(event, turn)
            if over:
                break
    finally:
        microphone.cancel()
        await asyncio.gather(microphone, return_exceptions=True)
    if script.verbose:
        print(f"answer: {turn.said}")
    return turn


async def _speak(script: Script, socket: ClientConnection, turn: Turn) -> None:
    """Sends the recording at the pace of time, and silence behind it until cancelled."""
    step = round(STEP_S * VOICE_HZ)
    voiced = np.flatnonzero(np.abs(script.wave) > VOICED_LEVEL)
    last_s = (voiced[-1] if len(voiced) else len(script.wave)) / VOICE_HZ
    began = time.perf_counter()
    turn.voice_ended = began + last_s
    place = 0
    while True:
        piece = script.wave[place : place + step]
        if not len(piece):
            if not script.detect:
                break
            piece = np.zeros(step, np.float32)
        data = base64.b64encode(to_pcm16(piece)).decode()
        place += len(piece)
        await asyncio.sleep(began + place / VOICE_HZ - time.perf_counter())
        await _send(socket, "input_audio_buffer.append", audio=data)
    await _send(socket, "input_audio_buffer.commit")
    await _send(socket, "response.create")


async def _send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


def _print_caption(event: dict[str, Any], turn: Turn) -> None:
    match event["type"]:
        case "input_audio_buffer.speech_started":
            print("(you speak)")
        case "input_audio_buffer.speech_stopped":
            print("(your turn is over)")
        case "conversation.item.input_audio_transcription.completed":
            print(f"you: {turn.heard}")
