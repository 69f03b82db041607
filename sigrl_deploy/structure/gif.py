"""GIF: what precedes the first picture, which Pillow reads block by block in Python."""

from __future__ import annotations

from typing import BinaryIO

from sigrl_deploy.structure.limits import require

MAX_HEAD_BYTES = 2**20


def check(stream: BinaryIO, length: int) -> None:
    """Raises Refused; see `sigrl_deploy.structure`. The first picture's size is known once Pillow has opened the file."""
    stream.seek(0)
    head = stream.read(MAX_HEAD_BYTES)
    at = 13 + (3 << (head[10] & 7) + 1 if len(head) > 10 and head[10] & 0x80 else 0)
    while at < len(head):
        kind = head[at : at + 1]
        if kind in (b",", b";"):
            return
        at += 1
        if kind == b"!":
            at += 1
            while at < len(head) and head[at]:
                at += 1 + head[at]
            at += 1
    require(length <= MAX_HEAD_BYTES, f"has no picture in its first {MAX_HEAD_BYTES:,} bytes")
