"""WebP: decoded as a whole, from memory."""

from __future__ import annotations

from typing import BinaryIO

from sigrl_deploy.pictures.structure.limits import MAX_BYTES_WHOLE, require


def check(stream: BinaryIO, length: int) -> None:
    """Raises Refused as `check_structure` says. The size of the picture is checked once Pillow has opened the file."""
    require(length <= MAX_BYTES_WHOLE, f"{length:,} bytes, expected {MAX_BYTES_WHOLE:,} at most as WebP")
