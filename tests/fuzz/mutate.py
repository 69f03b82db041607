"""Damage that fits any file."""

from __future__ import annotations

from random import Random

MAX_BYTES = 2**20  # what repetition may add
_EDGES = [
    0,
    1,
    2,
    3,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0xFFFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
]


def damaged(data: bytes, others: list[bytes], rng: Random) -> bytes:
    """Apply one to four kinds of damage, half of them to the beginning of the file, which readers trust most."""
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        data = rng.choice(_DAMAGE)(data, others, rng)
    return data


def number(rng: Random, size: int) -> bytes:
    """A number of `size` bytes in either order: one at the edge of a type, or any."""
    value = rng.choice([*_EDGES, rng.getrandbits(8), rng.getrandbits(16), rng.getrandbits(32)])
    return (value & (1 << 8 * size) - 1).to_bytes(size, rng.choice(["big", "little"]))


def _place(data: bytes, rng: Random) -> int:
    return rng.randrange(0, max(1, rng.choice([len(data), min(len(data), 64), min(len(data), 512)])))


def _block(data: bytes, rng: Random) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + rng.choice([1, 2, 4, 12, 64, 1000, len(data)]))


def _flip(data: bytes, others: list[bytes], rng: Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 2, 8, 50])):
        if out:
            out[_place(data, rng)] = rng.choice([rng.getrandbits(8), 0, 0xFF])
    return bytes(out)


def _bit(data: bytes, others: list[bytes], rng: Random) -> bytes:
    out = bytearray(data)
    if out:
        out[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _set_number(data: bytes, others: list[bytes], rng: Random) -> bytes:
    at, size = _place(data, rng), rng.choice([1, 2, 4, 4, 8])
    return data[:at] + number(rng, size) + data[at + size :]


def _delete(data: bytes, others: list[bytes], rng: Random) -> bytes:
    start, end = _block(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, others: list[bytes], rng: Random) -> bytes:
    start, end = _block(data, rng)
    times = min(rng.choice([1, 2, 10, 1000, 100_000]), MAX_BYTES // max(1, end - start))
    return data[:end] + data[start:end] * times + data[end:]


def _insert(data: bytes, others: list[bytes], rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.choice([rng.randbytes(rng.choice([1, 4, 100])), bytes(rng.choice([1, 4, 1000]))]) + data[at:]


def _truncate(data: bytes, others: list[bytes], rng: Random) -> bytes:
    return data[: _place(data, rng)]


def _splice(data: bytes, others: list[bytes], rng: Random) -> bytes:
    other = rng.choice(others)
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _transplant(data: bytes, others: list[bytes], rng: Random) -> bytes:
    other, at = rng.choice(others), _place(data, rng)
    start, end = _block(other, rng)
    return data[:at] + other[start:end] + data[at + rng.choice([0, end - start]) :]


_DAMAGE = [_flip, _flip, _bit, _set_number, _set_number, _delete, _repeat, _insert, _truncate, _splice, _transplant]
