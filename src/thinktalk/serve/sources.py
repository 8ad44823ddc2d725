"""Media in requests: checked, measured and decoded before the engine sees them.

Only data URIs, base64 and (where allowed) remote URLs are read, never local paths. Everything here
blocks and belongs into a worker thread.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from typing import Any, TypeVar

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image

from thinktalk.media.chat import OPTIONS, PART_KINDS
from thinktalk.media.decode import load_audio, load_image
from thinktalk.media.mel import EAR_HZ
from thinktalk.serve.fetch import Remote, fetch
from thinktalk.serve.limits import MB, MEGAPIXEL, Limits, too_large
from thinktalk.serve.schema import ApiError

WORKERS = 8
Result = TypeVar("Result")
# Of a medium, from the body of a part: {"url": ...}, {"data": ..., "format": ...} or a string.
NESTED = ("url", "data", "format", "detail")
# Options that a caller over the wire may set: the others change how much memory is needed.
ALLOWED_OPTIONS = {
    "audio": ("start", "end", "audio_start", "audio_end"),
    "image": ("max_pixels", "detail"),
    "video": tuple(
        "fps nframes num_frames max_frames start end video_start video_end max_pixels "
        "audio_in_video use_audio_in_video".split()
    ),
}


class Sources:
    """Reads media within the limits."""

    def __init__(self, limits: Limits, *, remote: Remote):
        self.limits = limits
        self.remote: Remote = remote
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="media")
        self.max_mb = {"image": limits.image_mb, "audio": limits.audio_mb, "video": limits.video_mb}

    async def in_worker(self, work: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Calls what reads media in a thread. The threads are few and only for this: slow sites
        hold up other media at most."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(work, *args, **options))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def message(self, message: Mapping[str, Any], *, where: str = "messages") -> dict[str, Any]:
        """A chat message with its media loaded. Raises ApiError naming the part."""
        content = message.get("content")
        if content is None or isinstance(content, str):
            return dict(message)
        if not isinstance(content, Sequence):
            raise ApiError(400, f"{where}.content must be text or a list of parts", param=where)
        parts = [self.part(part, where=f"{where}.content.{n}") for n, part in enumerate(content)]
        return {**message, "content": parts}

    def part(self, part: Any, *, where: str) -> dict[str, Any]:
        """One {"type": ...} part; text stays as it is, media come back as arrays or bytes."""
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if not isinstance(part, Mapping):
            raise ApiError(400, f"{where} is not a part with a type", param=where)
        name = str(part.get("type"))
        kind = "text" if name == "refusal" else PART_KINDS.get(name)
        if kind is None:
            known = "text, input_audio, audio_url, image_url, video_url or video"
            raise ApiError(400, f"{where} has the type {name!r}; give {known}", param=where)
        rest = {key: value for key, value in part.items() if key != "type"}
        source = next((rest.pop(key) for key in (name, kind) if key in rest), None)
        if source is None:
            raise ApiError(400, f"{where} of type {name!r} lacks its {name}", param=where)
        if kind == "text":
            return {"type": "text", "text": self._text(source, where)}
        if isinstance(source, Mapping):
            rest |= {key: value for key, value in source.items() if key not in NESTED}
        options = self._options(kind, rest, where)
        try:
            return {"type": kind, kind: self._load(kind, source, where), **options}
        except ValueError as error:
            raise ApiError(422, f"{where}: {error}", code="invalid_media", param=where) from None

    def audio(self, data: bytes, *, sample_rate: int = EAR_HZ) -> NDArray[np.float32]:
        """A recording as float32 [n]. Raises ApiError if it is too large or long, or unreadable."""
        self._weigh("audio", data, "the recording")
        try:
            return load_audio(data, sample_rate=sample_rate, max_seconds=self.limits.audio_s)
        except ValueError as error:
            raise ApiError(422, str(error), code="invalid_audio", param="file") from None

    def image(self, source: Any, *, where: str) -> NDArray[np.uint8]:
        """A picture (a data URI, bare base64, or a URL) as uint8 [H,W,3]."""
        data = self._bytes("image", source, where)
        self._check_pixels(data, where)
        try:
            return load_image(data)
        except ValueError as error:
            raise ApiError(422, f"{where}: {error}", code="invalid_image", param=where) from None

    def _text(self, source: Any, where: str) -> str:
        if not isinstance(source, str):
            raise ApiError(400, f"{where}: text must be a string; send one", param=where)
        return source

    def _options(self, kind: str, rest: Mapping[str, Any], where: str) -> dict[str, Any]:
        for key in rest:
            if key not in ALLOWED_OPTIONS[kind] or key not in OPTIONS[kind]:
                known = ", ".join(ALLOWED_OPTIONS[kind])
                message = f"{where} has the unknown option {key!r}; known are {known}"
                raise ApiError(400, message, param=where)
        return {key: value for key, value in rest.items() if value is not None}

    def _load(self, kind: str, source: Any, where: str) -> Any:
        if kind == "image":
            return self.image(source, where=where)
        if kind == "video" and isinstance(source, list):
            if not 0 < len(source) <= self.limits.frames:
                message = f"{where}: give 1 to {self.limits.frames:g} frames"
                raise ApiError(422, message, code="invalid_media", param=where)
            return [self.image(frame, where=f"{where}.{n}") for n, frame in enumerate(source)]
        data = self._bytes(kind, source, where)
        if kind == "video":
            self._check_film(data, where)
            return data
        return load_audio(data, max_seconds=self.limits.audio_s)

    def _bytes(self, kind: str, source: Any, where: str) -> bytes:
        """The bytes of a medium, at most as many as allowed."""
        if isinstance(source, Mapping):
            source = source.get("url", source.get("data"))
        if not isinstance(source, str) or not source:
            message = f"{where} has no data; give a data URI, base64 or a URL"
            raise ApiError(400, message, code="invalid_value", param=where)
        max_bytes = int(self.max_mb[kind] * MB)
        if source.startswith(("http://", "https://")):
            data = fetch(source, max_bytes=max_bytes, remote=self.remote)
        else:
            _, comma, body = source.partition(",")
            if source.startswith("data:") and not comma:
                message = f"{where} is not a data URI; write data:TYPE;base64,DATA"
                raise ApiError(400, message, param=where)
            data = decode_base64(body if source.startswith("data:") else source, where=where)
        self._weigh(kind, data, where)
        return data

    def _weigh(self, kind: str, data: bytes, where: str) -> None:
        if len(data) > self.max_mb[kind] * MB:
            raise too_large(where, self.max_mb[kind])

    def _check_pixels(self, data: bytes, where: str) -> None:
        """Reads only the header: a small file may hold a picture that fills the memory."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(data)) as image:
                    width, height = image.size
        except Image.DecompressionBombError:
            width, height = 1 << 16, 1 << 16
        except (OSError, SyntaxError, ValueError):
            return  # load_image says what is wrong with it
        self._check_size(width, height, where)

    def _check_size(self, width: int, height: int, where: str) -> None:
        limit = self.limits.image_megapixels
        if width * height > limit * MEGAPIXEL:
            size = f"{width} x {height} pixels, more than {limit:g} million"
            message = f"{where} has {size}; make it smaller"
            raise ApiError(422, message, code="too_large", param=where)

    def _check_film(self, data: bytes, where: str) -> None:
        """Measures a film by its packets, without decoding it."""
        if data[:6] in (b"GIF87a", b"GIF89a") or data[8:12] == b"WEBP":
            self._check_pixels(data, where)
            return
        try:
            options = {"protocol_whitelist": ""}
            with av.open(io.BytesIO(data), "r", metadata_errors="ignore", options=options) as film:
                for stream in film.streams.video:
                    self._check_size(stream.width, stream.height, where)
                self._check_length(film, where)
        except (FFmpegError, OSError) as error:
            message = f"{where} cannot be read as video ({error.strerror or 'unreadable'})"
            raise ApiError(422, message, code="invalid_media", param=where) from None

    def _check_length(self, film: Any, where: str) -> None:
        first: Fraction | None = None
        for packet in film.demux():
            if packet.pts is None or packet.time_base is None:
                continue
            time = packet.pts * packet.time_base
            first = time if first is None else min(first, time)
            if time - first > self.limits.video_s:
                limit = self.limits.video_s
                message = f"{where} lasts longer than {limit:g} s; send a part of it"
                raise ApiError(422, message, code="too_long", param=where)


def decode_base64(text: Any, *, where: str) -> bytes:
    """The bytes. Raises ApiError 400 for what is not base64; line breaks are allowed."""
    if not isinstance(text, str):
        raise ApiError(400, f"{where} must be base64 text", code="invalid_value", param=where)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        message = f"{where} is not valid base64; encode the bytes of the medium"
        raise ApiError(400, message, code="invalid_value", param=where) from None
