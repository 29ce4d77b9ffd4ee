"""A file of numbers for TensorBoard: its format, in a few lines.

A library's writer hands what it gets to a thread, which dies on a full disk, and every call then
waits for it; here each call writes. The format is that of TensorFlow: TFRecords of `Event` messages
(tensorflow/core/util/event.proto), encoded as protocol buffers are.
"""

import os
import struct
import time

import numpy as np
from etils import epath


class Board:
    """Appends to a new file in `folder`. OSError: the disk."""

    def __init__(self, folder: epath.Path):
        unique = f"{time.time():017.6f}.{os.getpid()}.{time.monotonic_ns()}"
        self.path = folder / f"events.out.tfevents.{unique}"  # sorted as they were begun
        self.local = "://" not in str(folder)
        self.written = b""  # object stores cannot append
        folder.mkdir(parents=True, exist_ok=True)
        self._event(0, _bytes(3, b"brain.Event:2"))

    def write(self, step: int, record: dict[str, float]) -> None:
        """Numbers by name."""
        values = (_bytes(1, tag.encode()) + _float(2, x) for tag, x in record.items())
        self._event(step, _bytes(5, b"".join(_bytes(1, value) for value in values)))

    def purge(self, step: int) -> None:
        """Let TensorBoard forget what it knows from this step on."""
        self._event(step, _bytes(7, _integer(1, 1)))  # the log of a session that starts

    def _event(self, step: int, what: bytes) -> None:
        record = framed(_double(1, time.time()) + _integer(2, step) + what)
        if self.local:
            with self.path.open("ab") as file:
                file.write(record)
        else:
            self.written += record
            self.path.write_bytes(self.written)


def framed(data: bytes) -> bytes:
    """A TFRecord: the length and the data, each with its checksum behind it."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    turned = (crc >> 15) | (crc << 17)  # so that a checksum of checksums is one, too
    return struct.pack("<I", (turned + 0xA282EAD8) & 0xFFFFFFFF)


def _row(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)  # CRC-32C, by Castagnoli
    return value


_TABLE = [_row(value) for value in range(256)]


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that another one follows."""
    encoded = []
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        return _varint(field << 3 | 5) + np.float32(value).astype("<f4").tobytes()


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
