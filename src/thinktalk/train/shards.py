"""Where rows come from: files, folders, tar shards and objects of the datasets library.

A source answers by number, always with the same row, from any thread. Media that a row names are
looked for beside its file, or among the members of its shard.
"""

from __future__ import annotations

import json
import mmap
import os
import tarfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thinktalk.media.source import medium_of
from thinktalk.train.rows import LISTS, Row, read_row
from thinktalk.train.schemas import INFO_FILE, Schema, read_info

ROW_SUFFIXES = (".jsonl", ".json", ".tar")
REMOTE = ("http://", "https://", "data:")
SCAN_BYTES = 1 << 24


class Source(Protocol):
    """Rows by number."""

    name: str

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Raises ValueError, without the place, for a row that cannot be used."""
        ...

    def place(self, index: int) -> str:
        """Where the row stands, for people: file and line."""
        ...

    def stamp(self) -> str:
        """Changes when the rows may have changed."""
        ...


@dataclass(frozen=True)
class Member:
    """A file inside a tar shard: bytes that are read when they are needed."""

    shard: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def content(source: Any) -> Any:
    """A medium as the functions of media take it: members of shards are read, others stay."""
    if isinstance(source, list):
        return [content(frame) for frame in source]
    return source.read() if isinstance(source, Member) else source


def open_source(
    data: str | Path | Sequence[Any] | Any,
    *,
    names: Sequence[str] | None = None,
    media: Path | None = None,
) -> Source:
    """Return the rows of a .jsonl, .json or .tar file, of a folder of such files, or of an object.

    An object has a length and answers with rows by number: a Dataset of the datasets library, or a
    list. A folder holds all its .jsonl and .tar files, or else its .json files; with a
    dataset_info.json it holds the files that the entries name, and names chooses some. media is
    where media with relative paths are; by default beside the file. Raises ValueError for what is
    not there, not readable or empty.
    """
    if not isinstance(data, str | Path):
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise ValueError(
                f"a {type(data).__name__} has no length, so its order cannot be fixed; give a "
                "Dataset that is not a stream"
            )
        return _filled(Records(data, media=media))
    path = Path(data).expanduser()
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a file or folder of training data")
    if path.is_dir():
        return _filled(_open_folder(path, names, media))
    if names is not None:
        raise ValueError(f"{path} is no folder with a {INFO_FILE}, so there are no names to choose")
    return _filled(_open_file(path, None, media))


def _open_folder(folder: Path, names: Sequence[str] | None, media: Path | None) -> Source:
    if not (folder / INFO_FILE).exists():
        if names is not None:
            raise ValueError(f"{folder} has no {INFO_FILE}, so there are no names to choose")
        files = sorted(path for path in folder.iterdir() if path.suffix in ROW_SUFFIXES)
        # beside other files, those in .json are settings and the like
        files = [path for path in files if path.suffix != ".json"] or files
        if not files:
            raise ValueError(f"{folder} holds no {', '.join(ROW_SUFFIXES)} file; give another one")
        return chained([_open_file(path, None, media) for path in files])
    info = read_info(folder)
    if missing := [name for name in names or () if name not in info]:
        raise ValueError(f"{folder / INFO_FILE} has no entry {missing[0]!r}")
    schemas = [Schema.from_entry(name, info[name]) for name in names or info]
    sources = []
    for schema in schemas:
        path = folder / schema.file_name
        if not path.exists():
            raise ValueError(f"{folder / INFO_FILE}: {schema.name} names {path}, which is missing")
        if path.is_dir():
            parts = sorted(p for p in path.iterdir() if p.suffix in ROW_SUFFIXES)
            sources += [_open_file(part, schema, media or folder) for part in parts]
        else:
            sources.append(_open_file(path, schema, media or folder))
    return chained(sources)


def _open_file(path: Path, schema: Schema | None, media: Path | None) -> Source:
    if path.suffix == ".tar":
        return TarShard(path, schema=schema, media=media)
    if path.suffix == ".jsonl":
        return JsonLines(path, schema=schema, media=media)
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(
                f"{path} is not JSON ({error}); rows by line belong in .jsonl"
            ) from None
        if not isinstance(rows, list):
            raise ValueError(f"{path} is not a list of rows; rows by line belong in .jsonl")
        return Records(rows, path=path, schema=schema, media=media)
    raise ValueError(f"{path} is no {', '.join(ROW_SUFFIXES)} file; convert it")


def _filled(source: Source) -> Source:
    if not len(source):
        raise ValueError(f"{source.name} holds no rows; give data with at least one")
    return source


class JsonLines:
    """A file with one JSON object a line; empty lines do not count."""

    def __init__(self, path: Path, *, schema: Schema | None = None, media: Path | None = None):
        self.name, self.path, self.schema = str(path), path, schema
        self.folder = media or path.parent
        self._starts, self._lines = _line_starts(path)
        self._size = path.stat().st_size
        with path.open("rb") as file:  # an empty file cannot be mapped
            self._bytes = (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self._size else b""
            )

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Row:
        start = int(self._starts[index])
        stop = int(self._starts[index + 1]) if index + 1 < len(self) else self._size
        try:
            raw = json.loads(self._bytes[start:stop].decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"it is not JSON ({error})") from None
        find = Folder(self.folder)
        return read_row(raw, find=find, schema=self.schema, place=self.place(index))

    def place(self, index: int) -> str:
        return f"{self.path}:{self._lines[index]}"

    def stamp(self) -> str:
        return _file_stamp(self.path, self.schema)


class Records:
    """Rows of an object with a length: a list, or a Dataset of the datasets library."""

    def __init__(
        self,
        rows: Any,
        *,
        path: Path | None = None,
        schema: Schema | None = None,
        media: Path | None = None,
    ):
        self.name = str(path) if path else f"the given {type(rows).__name__}"
        self.rows, self.path, self.schema = rows, path, schema
        self.folder = media or (path.parent if path else Path())

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        find = Folder(self.folder)
        raw = self.rows[index]
        return read_row(raw, find=find, schema=self.schema, place=self.place(index))

    def place(self, index: int) -> str:
        return f"{self.name}: row {index + 1}"

    def stamp(self) -> str:
        if self.path:
            return _file_stamp(self.path, self.schema)
        return f"{getattr(self.rows, '_fingerprint', '')}/{len(self)}"


class TarShard:
    """A tar file in the manner of webdataset: members KEY.json, KEY.wav, KEY.left.png, ...

    KEY.json is the row. It names media by their members, whole or without KEY and dot; where it has
    no list for a kind, the members of that kind serve in the order of their names. Other media are
    looked for beside the shard.
    """

    def __init__(self, path: Path, *, schema: Schema | None = None, media: Path | None = None):
        self.name, self.path, self.schema = str(path), path, schema
        self.folder = media or path.parent
        self._keys, self._members = _tar_index(path)

    def __len__(self) -> int:
        return len(self._keys)

    def row(self, index: int) -> Row:
        key = self._keys[index]
        members = self._members[key]
        if "json" not in members:
            raise ValueError(f"there is no {key}.json beside {key}.{min(members)}")
        try:
            raw = json.loads(members["json"].read())
        except ValueError as error:
            raise ValueError(f"it is not JSON ({error})") from None
        if self.schema is None and isinstance(raw, dict):
            raw = _own_media(members) | raw
        find = _Shard(self.folder, key, members)
        return read_row(raw, find=find, schema=self.schema, place=self.place(index))

    def place(self, index: int) -> str:
        return f"{self.path}: {self._keys[index]}.json"

    def stamp(self) -> str:
        return _file_stamp(self.path, self.schema)


class Chain:
    """Several sources behind one another."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = sources
        self.name = ", ".join(source.name for source in sources[:3])
        self._stops = list(accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def row(self, index: int) -> Row:
        source, inner = self._at(index)
        return source.row(inner)

    def place(self, index: int) -> str:
        source, inner = self._at(index)
        return source.place(inner)

    def stamp(self) -> str:
        return "\n".join(source.stamp() for source in self.sources)

    def _at(self, index: int) -> tuple[Source, int]:
        number = bisect_right(self._stops, index)
        return self.sources[number], index - (self._stops[number - 1] if number else 0)


def chained(sources: Sequence[Source]) -> Source:
    return sources[0] if len(sources) == 1 else Chain(sources)


class Folder:
    """Finds the media of rows in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, source: Any, kind: str) -> Any:
        """A path, URL, bytes or array of what a row names. Raises ValueError if it is missing."""
        if isinstance(source, str):
            return source if source.startswith(REMOTE) else self._named(source)
        if isinstance(source, Mapping):
            return self._of_datasets(source, kind)
        if isinstance(source, list | tuple) and kind == "video":
            return [self(frame, "image") for frame in source]
        if isinstance(source, bytes | np.ndarray | Image.Image | Path):
            return source
        raise ValueError(
            f"the {kind} is of type {type(source).__name__}; give a path, a URL, or (in objects of "
            "the datasets library) a column with decode=False"
        )

    def _named(self, name: str) -> str:
        name = name.removeprefix("file://")
        beside = os.path.join(self.folder, name)  # an absolute name stays as it is
        for path in (beside, name):
            if os.path.isfile(path):
                return path
        raise ValueError(f"{beside} does not exist")

    def _of_datasets(self, source: Mapping[str, Any], kind: str) -> Any:
        """What the datasets library stores: {"bytes", "path"} or {"array", "sampling_rate"}."""
        if source.get("bytes") is not None:
            return source["bytes"]
        if source.get("array") is not None:
            return np.asarray(source["array"], np.float32), int(source["sampling_rate"])
        if isinstance(source.get("path"), str):
            return self(source["path"], kind)
        raise ValueError(f"the {kind} is an object without path, bytes or array; add one")


class _Shard(Folder):
    """Finds media among the members of a sample, and else in a folder."""

    def __init__(self, folder: Path, key: str, members: Mapping[str, Member]):
        super().__init__(folder)
        self.key, self.members = key, members

    def _named(self, name: str) -> Any:
        inside = name.removeprefix(f"{self.key}.").removeprefix(f"{Path(self.key).name}.")
        return self.members[inside] if inside in self.members else super()._named(name)


def _own_media(members: Mapping[str, Member]) -> dict[str, list[str]]:
    """The media columns of a row that has none; members named speech... are no prompt."""
    kinds = {end: medium_of(f"x.{end}") for end in sorted(members) if not end.startswith("speech")}
    lists = {kind: [end for end in kinds if kinds[end] == kind] for kind in LISTS}
    return {LISTS[kind]: ends for kind, ends in lists.items() if ends}


def _tar_index(path: Path) -> tuple[list[str], dict[str, dict[str, Member]]]:
    """The samples of a tar file in order, and their members by what stands behind the first dot."""
    members: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isfile():
                    folder, _, base = info.name.rpartition("/")
                    stem, _, end = base.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    member = Member(path, info.name, info.offset_data, info.size)
                    members.setdefault(key, {})[end] = member
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no plain tar file ({error}); write it again") from None
    return list(members), members


def _line_starts(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the lines that are not empty begin, and their numbers from 1."""
    ends, offset = [np.array([-1])], 0
    with path.open("rb") as file:
        while chunk := file.read(SCAN_BYTES):
            ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset)
            offset += len(chunk)
    stops = np.append(np.concatenate(ends), offset)
    lengths = np.diff(stops) - 1
    # what a line of one or two bytes holds is at most a carriage return
    numbers = np.flatnonzero(lengths > 1)
    return (stops[numbers] + 1).astype(np.int64), (numbers + 1).astype(np.int64)


def _file_stamp(path: Path, schema: Schema | None) -> str:
    found = path.stat()
    return f"{path.resolve()}/{found.st_size}/{found.st_mtime_ns}/{schema}"
