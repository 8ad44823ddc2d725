"""/v1/audio/transcriptions: a recording in, what the model hears in it out.

Where times are asked for (srt, vtt, verbose_json) or the recording is long, the voice detector cuts
it into stretches of speech, whose times are the detector's; otherwise it is heard in one piece.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from thinktalk.live import api
from thinktalk.media.mel import EAR_HZ
from thinktalk.options import ServerVad, Settings
from thinktalk.serve.limits import bounded, in_time
from thinktalk.serve.metrics import Metrics
from thinktalk.serve.reply import Stream, sse, while_connected
from thinktalk.serve.schema import ApiError, failed, refused
from thinktalk.serve.sessions import Sessions, Talk
from thinktalk.serve.sources import Sources

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
TIMED = ("srt", "verbose_json", "vtt")
WHOLE_S = 30.0  # longer recordings are cut where nobody speaks
TRAILING_S = 1.0  # silence put behind a recording, so that the detector sees its end
FIELDS = frozenset(
    "file model language prompt response_format temperature stream include chunking_strategy "
    "timestamp_granularities timestamp_granularities[] include[]".split()
)
MAX_FIELDS = 32


@dataclass(frozen=True)
class Asked:
    format: str
    stream: bool
    cut: bool  # at pauses
    language: str  # as the caller says


@dataclass(frozen=True)
class Piece:
    """A bit of text; done: the whole text of a stretch of speech, with its times in seconds."""

    text: str
    done: bool = False
    start_s: float = 0.0
    end_s: float = 0.0


class Transcriptions:
    """The endpoint."""

    def __init__(self, sessions: Sessions, *, sources: Sources, metrics: Metrics):
        self.sessions, self.sources, self.metrics = sessions, sources, metrics

    async def transcribe(self, request: Request) -> Response:
        limits = self.sessions.limits
        request = bounded(request, max_mb=limits.audio_mb + 1)
        async with in_time(limits), request.form(max_files=1, max_fields=MAX_FIELDS) as form:
            asked = _asked(form)
            file = form["file"]
            assert isinstance(file, UploadFile)
            data = await file.read()
        samples = await self.sources.in_worker(self.sources.audio, data)
        pieces = self._pieces(samples, asked)
        if asked.stream:
            return Stream(_events(pieces, seconds=len(samples) / EAR_HZ), source=pieces)
        async with while_connected(request):
            try:
                found = [piece async for piece in pieces if piece.done]
            finally:
                await pieces.aclose()
        return _response(found, asked, seconds=len(samples) / EAR_HZ)

    async def _pieces(
        self, samples: NDArray[np.float32], asked: Asked
    ) -> AsyncGenerator[Piece, None]:
        seconds = len(samples) / EAR_HZ
        cut = asked.cut or seconds > WHOLE_S
        watch = self.metrics.stopwatch("transcription")
        detection = ServerVad(create_response=False) if cut else None
        settings = Settings(speak=False, turn_detection=detection)
        talk = await self.sessions.open(settings, wait=True)
        try:
            pieces = _stretches(talk, samples) if cut else _one(talk, samples)
            async for piece in pieces:
                yield piece
            watch.stage("transcript")
        finally:
            talk.close()


async def _one(talk: Talk, samples: NDArray[np.float32]) -> AsyncIterator[Piece]:
    """Hears a recording in one piece."""
    talk.session.push_audio(samples, sample_rate=EAR_HZ)
    talk.session.commit(respond=False)
    async for event in talk.events():
        match event:
            case api.Failed():
                raise failed(event)
            case api.TurnCommitted():
                talk.session.transcribe(event.item)
            case api.InputTranscript(done=False):
                yield Piece(event.text)
            case api.InputTranscript():
                yield Piece(event.text, True, 0.0, len(samples) / EAR_HZ)
                return


async def _stretches(talk: Talk, samples: NDArray[np.float32]) -> AsyncIterator[Piece]:
    """Hears every stretch of speech by itself, in order."""
    limit_s = len(samples) / EAR_HZ
    silence = np.zeros(round(TRAILING_S * EAR_HZ), np.float32)
    talk.session.push_audio(np.concatenate((samples, silence)), sample_rate=EAR_HZ)
    talk.session.commit(respond=False)  # in case that the detector takes the end for speech
    talk.session.clear()  # carried out in order: once it is answered, all has been listened to
    times: dict[str, list[float]] = {}
    waiting: list[str] = []
    busy = heard_all = False
    async for event in talk.events():
        match event:
            case api.SpeechStarted():
                times[event.item] = [min(limit_s, event.audio_ms / 1000), limit_s]
            case api.SpeechStopped():
                times[event.item][1] = min(limit_s, event.audio_ms / 1000)
            case api.TurnCommitted():
                waiting.append(event.item)
            case api.InputCleared():
                heard_all = True
            case api.Failed() if event.code != "input_audio_buffer_commit_empty":
                raise failed(event)
            case api.InputTranscript(done=False):
                yield Piece(event.text)
            case api.InputTranscript():
                yield Piece(event.text, True, *times.get(event.item, (0.0, limit_s)))
                busy = False
        if waiting and not busy:
            busy = True
            talk.session.transcribe(waiting.pop(0))
        if heard_all and not busy:
            return


# ---- replies


async def _events(pieces: AsyncGenerator[Piece, None], *, seconds: float) -> AsyncIterator[bytes]:
    """OpenAI's transcript.text events."""
    texts: list[str] = []
    gap = ""
    try:
        async for piece in pieces:
            if piece.done:
                texts.append(piece.text.strip())
                gap = " "
            elif piece.text:
                yield sse({"type": "transcript.text.delta", "delta": gap + piece.text})
                gap = ""
    except ApiError as error:
        yield sse(error.body)
        return
    usage = {"type": "duration", "seconds": round(seconds, 3)}
    yield sse({"type": "transcript.text.done", "text": " ".join(texts), "usage": usage})


def _response(found: list[Piece], asked: Asked, *, seconds: float) -> Response:
    text = " ".join(piece.text.strip() for piece in found).strip()
    usage = {"type": "duration", "seconds": round(seconds, 3)}
    if asked.format == "json":
        return JSONResponse({"text": text, "usage": usage})
    if asked.format == "text":
        return PlainTextResponse(text + "\n")
    if asked.format == "srt":
        return PlainTextResponse(srt(found), media_type="application/x-subrip")
    if asked.format == "vtt":
        return PlainTextResponse(vtt(found), media_type="text/vtt")
    segments = [_segment(number, piece) for number, piece in enumerate(found)]
    return JSONResponse(
        {
            "task": "transcribe",
            "language": asked.language,
            "duration": round(seconds, 3),
            "text": text,
            "segments": segments,
            "usage": usage,
        }
    )


def srt(pieces: list[Piece]) -> str:
    blocks = [
        f"{number}\n{_clock(p.start_s, ',')} --> {_clock(p.end_s, ',')}\n{p.text.strip()}\n"
        for number, p in enumerate(pieces, 1)
    ]
    return "\n".join(blocks)


def vtt(pieces: list[Piece]) -> str:
    blocks = [
        f"{_clock(p.start_s, '.')} --> {_clock(p.end_s, '.')}\n{p.text.strip()}\n" for p in pieces
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _clock(seconds: float, mark: str) -> str:
    """hh:mm:ss,mmm"""
    whole, ms = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{mark}{ms:03}"


def _segment(number: int, piece: Piece) -> dict[str, Any]:
    """OpenAI's segment. What only Whisper measures is 0, because the type demands numbers."""
    text = piece.text.strip()
    data = text.encode()
    return {
        "id": number,
        "seek": 0,
        "start": round(piece.start_s, 3),
        "end": round(piece.end_s, 3),
        "text": text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": round(len(data) / len(zlib.compress(data)), 3) if data else 0.0,
        "no_speech_prob": 0.0,
    }


# ---- the request


def _asked(form: FormData) -> Asked:
    """Raises ApiError for what is missing, unknown or not offered."""
    if unknown := set(form) - FIELDS:
        name = sorted(unknown)[0]
        raise ApiError(400, f"unknown field {name!r}; remove it", code="unknown", param=name)
    if not isinstance(form.get("file"), UploadFile):
        raise ApiError(400, "file is missing: give a recording", code="missing", param="file")
    words = {key: value for key, value in form.multi_items() if isinstance(value, str)}
    format = words.get("response_format", "json")
    if format not in FORMATS:
        message = f"response_format {format!r} is not offered; use one of {', '.join(FORMATS)}"
        raise ApiError(400, message, code="unsupported_value", param="response_format")
    granularities = form.getlist("timestamp_granularities[]")
    granularities += form.getlist("timestamp_granularities")
    if "word" in granularities:
        raise refused("timestamp_granularities", "times of words are not known; use segment")
    if words.get("include[]") or words.get("include"):
        raise refused("include", "log probabilities are not computed; leave it out")
    if words.get("prompt"):
        raise refused("prompt", "the model writes what it hears; leave it out")
    if words.get("temperature", "0") not in ("", "0", "0.0"):
        raise refused("temperature", "transcription is greedy; use 0")
    stream = words.get("stream", "false").lower() in ("true", "1")
    if stream and format not in ("json", "text"):
        raise refused("stream", "it goes with response_format json or text")
    cut = format in TIMED or bool(words.get("chunking_strategy"))
    return Asked(format, stream, cut, words.get("language") or "unknown")
