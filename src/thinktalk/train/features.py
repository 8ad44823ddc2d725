"""Arrays that are costly to make, kept on disk: made once, by whichever process needs them first.

An entry is a safetensors file named by a hash of what it was made from. Files appear whole and are
never changed, so that any number of processes and threads may share a folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from thinktalk.train.shards import REMOTE, Member

Arrays = dict[str, NDArray[Any]]

LOG = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 64 << 30
KEPT_SHARE = 0.9  # of the bound is left after a clearing
UNNOTICED_SHARE = 1 / 64  # of the bound may be written by a process before it looks again
LARGE_BYTES = 1 << 22  # files from here on are not read again for their hash


class FeatureCache:
    """A bounded folder of arrays by key.

    The folder holds at most max_bytes, and for every process that writes at most one 64th of that
    more; what was not used for the longest time is deleted. A full disk is no error: nothing is
    kept then.
    """

    def __init__(self, folder: Path, *, max_bytes: int = DEFAULT_MAX_BYTES):
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; give the size that the cache may have")
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._written = max_bytes  # nobody has looked yet

    def get(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays that make() gave the first time. key: a hash, as `digest` returns it."""
        path = self.folder / key[:2] / f"{key[2:]}.safetensors"
        try:
            arrays = load_file(path)
            with suppress(OSError):
                os.utime(path)  # the last use, which clearing goes by
            return arrays
        except FileNotFoundError:
            pass
        except (SafetensorError, OSError) as error:  # damaged by others: made again
            LOG.warning("%s cannot be read (%s) and is made again", path, error)
        arrays = make()
        self._keep(path, arrays)
        return arrays

    def digest(self, *things: Any) -> str:
        """A hash of the contents of media, and of plain settings (their repr), in order.

        Large files are read once and known again by path, size and time; URLs go by their address.
        """
        total = hashlib.sha256()
        for thing in things:
            for part in self._content(thing):
                total.update(len(part).to_bytes(8, "little"))
                total.update(part)
        return total.hexdigest()

    def _content(self, thing: Any) -> list[bytes]:
        if isinstance(thing, list | tuple):
            parts = [part for item in thing for part in self._content(item)]
            return [f"{len(thing)} items".encode(), *parts]
        if isinstance(thing, Member):
            return [hashlib.sha256(thing.read()).digest()]
        if isinstance(thing, bytes | bytearray | memoryview):
            return [hashlib.sha256(thing).digest()]
        if isinstance(thing, Image.Image):
            return [repr((thing.mode, thing.size)).encode(), thing.tobytes()]
        if isinstance(thing, np.ndarray):
            kind = repr((thing.shape, thing.dtype)).encode()
            return [kind, np.ascontiguousarray(thing).tobytes()]
        if isinstance(thing, Path) or (isinstance(thing, str) and _is_file(thing)):
            return [self._file_digest(Path(thing))]
        return [repr(thing).encode()]

    def _file_digest(self, path: Path) -> bytes:
        found = path.stat()
        if found.st_size < LARGE_BYTES:
            return hashlib.sha256(path.read_bytes()).digest()
        known = self.digest(f"file:{path.resolve()}", found.st_size, found.st_mtime_ns)
        return self.get(known, lambda: {"digest": _hashed(path)})["digest"].tobytes()

    def _keep(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        part = path.with_name(f"{path.stem}.{os.getpid()}.{threading.get_ident()}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, part)
            size = part.stat().st_size
            part.replace(path)
        except (OSError, SafetensorError) as error:  # most often a full disk
            LOG.warning("%s cannot be kept (%s)", path, error)
            part.unlink(missing_ok=True)
            return
        with self._lock:
            self._written += size
            if self._written > self.max_bytes * UNNOTICED_SHARE:
                self._written = 0
                self._clear()

    def _clear(self) -> None:
        """Deletes the entries that were not used for the longest time, if there is too much."""
        entries = []
        for path in self.folder.glob("??/*"):
            try:
                found = path.stat()
            except FileNotFoundError:  # another process is clearing, too
                continue
            entries.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in entries)
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(entries):
            path.unlink(missing_ok=True)
            total -= size
            if total <= self.max_bytes * KEPT_SHARE:
                return


def _hashed(path: Path) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        return np.frombuffer(hashlib.file_digest(file, "sha256").digest(), np.uint8)


def _is_file(text: str) -> bool:
    return len(text) < 4096 and not text.startswith(REMOTE) and os.path.isfile(text)
