"""Where bytes come from: a path, a URL, a data URI or bytes in memory, each with a name for errors.

Every refusal is one ValueError sentence: which medium, what is wrong with it, what to do.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.error import URLError
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import Request, urlopen

Source = str | Path | bytes | bytearray | memoryview

CONNECT_SECONDS = 30
MAX_DOWNLOAD_BYTES = 1 << 30
DOWNLOAD_STEP_BYTES = 1 << 20

AUDIO_SUFFIXES = frozenset(
    ".wav .mp3 .flac .ogg .oga .opus .m4a .aac .wma .aiff .aif .aifc .caf .amr .ac3 .mka .au "
    ".w64 .mp2 .weba".split()
)
IMAGE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .gif .bmp .tif .tiff .avif .jp2 .ppm .pgm .tga .ico".split()
)
VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .mts .wmv .flv .3gp .3g2 .ogv .asf "
    ".mxf .vob".split()
)


@dataclass(frozen=True)
class Opened:
    """A seekable binary file and the name that errors give it."""

    name: str
    file: BinaryIO

    def refuse(self, what: str, remedy: str) -> ValueError:
        """The error to raise: which medium, what is wrong with it, what to do about it."""
        return refusal(self.name, what, remedy)


def refusal(name: str, what: str, remedy: str) -> ValueError:
    """Return the one sentence with which a medium is turned away."""
    return ValueError(f"{name} {what}; {remedy}")


@contextmanager
def open_source(source: Source) -> Iterator[Opened]:
    """Open a medium for reading; ValueError if it is missing, unreachable or empty."""
    opened = _open(source)
    try:
        if not opened.file.read(1):
            raise opened.refuse("is empty (0 bytes)", "check how it was written or sent")
        opened.file.seek(0)
        yield opened
    finally:
        opened.file.close()


def medium_of(text: str) -> str | None:
    """Return "audio", "image" or "video" if the text is a path, URL or data URI of one, else None.

    Texts with spaces count as a path only if that file exists: questions may end in ".png", too.
    """
    if text.startswith("data:"):
        kind = text[5:].split("/", 1)[0]
        return kind if kind in ("audio", "image", "video") else None
    is_url = text.startswith(("http://", "https://", "file://"))
    path = unquote(urlsplit(text).path) if is_url else text
    suffix = Path(path).suffix.lower()
    by_suffix = {"audio": AUDIO_SUFFIXES, "image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES}
    kind = next((kind for kind, suffixes in by_suffix.items() if suffix in suffixes), None)
    if kind and any(c.isspace() for c in text) and not (is_url or _is_file(text)):
        return None
    return kind


def source_name(source: object) -> str:
    """Return how errors call a source, without its contents or the secrets of a URL."""
    if isinstance(source, Path):
        return str(source)
    if not isinstance(source, str):
        is_bytes = isinstance(source, bytes | bytearray | memoryview)
        return "the given data" if is_bytes else f"the given {type(source).__name__}"
    if source.startswith("data:"):
        return f"the data URI ({source[5:45].split(',')[0].split(';')[0] or 'no type'})"
    parts = urlsplit(source)
    if parts.scheme in ("http", "https"):
        return f"{parts.scheme}://{parts.hostname}{parts.path}"
    return source if len(source) <= 200 else source[:200] + "..."


def _open(source: Source) -> Opened:
    name = source_name(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return Opened(name, io.BytesIO(source))
    if isinstance(source, str):
        if source.startswith("data:"):
            return Opened(name, io.BytesIO(_data_uri(source, name)))
        if source.startswith(("http://", "https://")):
            return Opened(name, _download(source, name))
        if source.startswith("file://"):
            source = unquote(urlsplit(source).path)
        if "\0" in source:
            raise refusal(repr(name), "is not a path", "give the path of a file")
    elif not isinstance(source, Path):
        raise refusal(name, "is no medium", "give a path, a URL, a data URI, bytes or an array")
    path = Path(source).expanduser()
    try:
        return Opened(str(path), path.open("rb"))
    except FileNotFoundError:
        raise refusal(str(path), "does not exist", "check the path") from None
    except IsADirectoryError:
        raise refusal(str(path), "is a folder", "give a file in it") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise refusal(name, f"cannot be opened ({reason})", "check the path") from None


def _data_uri(uri: str, name: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise refusal(name, "has no comma", "write data:TYPE;base64,DATA")
    if not head.endswith("base64"):  # the official tools write "data:image;base64,..."
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise refusal(name, "is not valid base64", "encode the bytes again") from None


def _download(url: str, name: str) -> BinaryIO:
    held = io.BytesIO()
    try:
        request = Request(url, headers={"User-Agent": "thinktalk"})
        with urlopen(request, timeout=CONNECT_SECONDS) as reply:
            while chunk := reply.read(DOWNLOAD_STEP_BYTES):
                held.write(chunk)
                if held.tell() > MAX_DOWNLOAD_BYTES:
                    limit = MAX_DOWNLOAD_BYTES >> 20
                    raise refusal(name, f"is larger than {limit} MiB", "download and shorten it")
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        what = f"could not be downloaded ({reason})"
        raise refusal(name, what, "check the address and the network") from None
    held.seek(0)
    return held


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False
