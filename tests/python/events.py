"""Reads TensorBoard event files with the standard library alone, checking every checksum.

`python3 events.py FOLDER` prints a list with one entry a file, in the order of their names.
"""

import json
import struct
import sys
from pathlib import Path


def crc32c(data):
    """CRC-32C bit by bit, most significant first on mirrored bytes: another way than a table."""
    mirror = lambda value, bits: int(f"{value:0{bits}b}"[::-1], 2)
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= mirror(byte, 8) << 24
        for _ in range(8):
            remainder = (remainder << 1) ^ (0x11EDC6F41 if remainder >> 31 else 0)
    return mirror(remainder, 32) ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283  # the check value that the standard gives


def checked(data, stored, what):
    crc = crc32c(data)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if struct.unpack("<I", stored)[0] != masked:
        raise ValueError(f"{what}: wrong checksum")
    return data


def records(path):
    content, at = path.read_bytes(), 0
    while at < len(content):
        head = checked(content[at : at + 8], content[at + 8 : at + 12], f"{path} byte {at}, length")
        end = at + 12 + struct.unpack("<Q", head)[0]
        yield checked(content[at + 12 : end], content[end : end + 4], f"{path} byte {at}, event")
        at = end + 4


def fields(message):
    """Yields (field number, value) of a protobuf message; values of wire types 0, 1, 2 and 5."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        value = message[at : at + size]
        at += size
        yield key >> 3, struct.unpack({8: "<d", 4: "<f"}[size], value)[0] if kind != 2 else value


def read_file(path):
    """{"version", "starts": steps of session starts, "scalars": [{"tag", "step", "wall_time", "value"}]}."""
    out = {"version": None, "starts": [], "scalars": []}
    for record in records(path):
        event = dict(fields(record))
        if 3 in event:
            out["version"] = event[3].decode()
        if 7 in event and dict(fields(event[7]))[1] == 1:
            out["starts"].append(event[2])
        for _, value in fields(event.get(5, b"")):
            value = dict(fields(value))
            point = {"tag": value[1].decode(), "step": event[2], "wall_time": event[1], "value": value[2]}
            out["scalars"].append(point)
    return out


def read_folder(folder):
    return [read_file(path) for path in sorted(Path(folder).glob("events.out.tfevents.*"))]


if __name__ == "__main__":
    print(json.dumps(read_folder(sys.argv[1])))
