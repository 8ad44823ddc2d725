"""Figures of a training run in, a file that TensorBoard reads out; without TensorBoard.

A file is a row of records: length, its checksum, an Event message of protocol buffers, its
checksum (TensorFlow's record_writer.cc, event.proto and summary.proto).
"""

import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

CASTAGNOLI = 0x82F63B78  # polynomial of CRC-32C, bits reversed
MASK = 0xA282EAD8  # added to checksums, because files may hold checksums themselves
# Field numbers of Event and of Summary.Value
WALL_TIME, STEP, VERSION, SUMMARY = 1, 2, 3, 5
VALUE, TAG, SIMPLE_VALUE = 1, 1, 2


class Board:
    """Appends to a new file in a folder."""

    def __init__(self, folder: Path, *, name: str = "train"):
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self.path = folder / f"events.out.tfevents.{now:.6f}.{name}"
        self._append(_double(WALL_TIME, now) + _bytes(VERSION, b"brain.Event:2"))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        values = b"".join(
            _bytes(VALUE, _bytes(TAG, name.encode()) + _float(SIMPLE_VALUE, value))
            for name, value in figures.items()
        )
        head = _double(WALL_TIME, time.time()) + _whole(STEP, step)
        self._append(head + _bytes(SUMMARY, values))

    def _append(self, event: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(record(event))


def record(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as in RFC 3720."""
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@cache
def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return table


def _checksum(data: bytes) -> bytes:
    value = crc32c(data)
    rotated = (value >> 15 | value << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + MASK) & 0xFFFFFFFF)


# ---- fields of protocol buffers: number and kind in one, then the value


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _whole(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
