"""/v1/audio/speech: words in, the model's voice out, as it is made."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from thinktalk.options import Settings
from thinktalk.serve.limits import read_body
from thinktalk.serve.metrics import Metrics
from thinktalk.serve.reply import (
    End,
    Part,
    Sound,
    SoundWriter,
    Stream,
    reply_parts,
    sse,
    while_connected,
)
from thinktalk.serve.schema import ApiError, SpeechRequest, parsed, voice_name
from thinktalk.serve.sessions import Sessions

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
# 4096 characters of speech, the longest input, at about 15 a second; 50 codec ids a second
MAX_CODEC_IDS = 14_000


class Speech:
    """The endpoint."""

    def __init__(self, sessions: Sessions, *, metrics: Metrics):
        self.sessions, self.metrics = sessions, metrics

    async def say(self, request: Request) -> Response:
        asked = parsed(SpeechRequest, await read_body(request, self.sessions.limits))
        asked.check()
        parts = self._parts(asked)
        async with while_connected(request):
            try:
                await anext(parts)  # what is refused is refused with its own status
            except BaseException:
                await parts.aclose()
                raise
        if asked.stream_format == "sse":
            return Stream(self._events(asked, parts), source=parts)
        media_type = MEDIA_TYPES[asked.response_format]
        return Stream(self._file(asked, parts), source=parts, media_type=media_type)

    async def _parts(self, asked: SpeechRequest) -> AsyncGenerator[Part, None]:
        voice = voice_name(asked.voice, tuple(self.sessions.engine.voices))
        settings = Settings(voice=voice, max_codec_ids=MAX_CODEC_IDS, seed=asked.seed or 0)
        watch = self.metrics.stopwatch("speech")
        talk = await self.sessions.open(settings, wait=True)
        try:
            talk.session.say(asked.input)
            async for part in reply_parts(talk, watch=watch):
                yield part
        finally:
            talk.close()

    async def _file(
        self, asked: SpeechRequest, parts: AsyncGenerator[Part, None]
    ) -> AsyncIterator[bytes]:
        async for data, _ in self._sound(asked, parts):
            if data:
                yield data

    async def _events(
        self, asked: SpeechRequest, parts: AsyncGenerator[Part, None]
    ) -> AsyncIterator[bytes]:
        """OpenAI's speech.audio events."""
        try:
            async for data, end in self._sound(asked, parts):
                if data:
                    audio = base64.b64encode(data).decode()
                    yield sse({"type": "speech.audio.delta", "audio": audio})
                if end is not None:
                    count = end.usage.output_audio
                    usage = {"input_tokens": end.usage.output_text, "output_tokens": count}
                    usage["total_tokens"] = sum(usage.values())
                    yield sse({"type": "speech.audio.done", "usage": usage})
        except ApiError as error:
            yield sse(error.body)

    async def _sound(
        self, asked: SpeechRequest, parts: AsyncGenerator[Part, None]
    ) -> AsyncIterator[tuple[bytes, End | None]]:
        """Pieces of the sound file, and its end."""
        writer = SoundWriter(asked.response_format)
        async for part in parts:
            if isinstance(part, Sound):
                yield await writer.push(part.samples), None
            elif isinstance(part, End):
                yield await writer.finish(), part
