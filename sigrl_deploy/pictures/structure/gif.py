"""GIF: the blocks before the first picture, which Pillow reads one by one in Python."""

from __future__ import annotations

from typing import BinaryIO

from sigrl_deploy.pictures.structure.limits import require

MAX_HEAD_BYTES = 2**20


def check(stream: BinaryIO, length: int) -> None:
    """Raises Refused as `check_structure` says. The size of the picture is checked once Pillow has opened the file."""
    stream.seek(0)
    head = stream.read(MAX_HEAD_BYTES)
    at = 13 + (3 << (head[10] & 7) + 1 if len(head) > 10 and head[10] & 0x80 else 0)
    while at < len(head):
        kind = head[at : at + 1]
        if kind in (b",", b";"):
            return
        at = _end_of_extension(head, at + 1) if kind == b"!" else at + 1
    require(length <= MAX_HEAD_BYTES, f"has no picture in its first {MAX_HEAD_BYTES:,} bytes")


def _end_of_extension(head: bytes, at: int) -> int:
    """The end as Pillow sees it: it reads past an empty block at the start of any extension but a comment."""
    comment, at = head[at : at + 1] == b"\xfe", at + 1
    size, at = _block(head, at)
    if comment and not size:
        return at
    if not comment and head[at - size : at].startswith(b"NETSCAPE2.0") and head[at - size - 2] == 0xFF:
        _, at = _block(head, at)
    while True:
        size, at = _block(head, at)
        if not size:
            return at


def _block(head: bytes, at: int) -> tuple[int, int]:
    """The size of a block, which is 0 at the end of an extension or of the file, and where the block ends."""
    size = head[at] if at < len(head) else 0
    return size, at + 1 + size
