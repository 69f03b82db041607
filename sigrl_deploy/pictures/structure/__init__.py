"""Checks of a picture file's structure, before a decoder sees it.

A small file can make a decoder work for minutes or take gigabytes: thousands of scans, millions of strips, text that inflates
a thousandfold. Each check here walks the file's structure, without decoding anything, and refuses what no photograph has. No
check stops before it has seen everything that a decoder may see: a file that exceeds a limit or contradicts itself is refused.
A file that merely ends too early passes, because its decoder notices that at no cost.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from sigrl_deploy.pictures.structure import bmp, boxes, gif, jpeg, png, tiff, webp
from sigrl_deploy.pictures.structure.limits import MAX_FILE_BYTES, Refused, require

__all__ = ["Refused", "check_structure"]

_CHECKS = {
    **dict.fromkeys([b"\xff\xd8\xff"], jpeg.check),
    **dict.fromkeys([b"\x89PNG"], png.check),
    **dict.fromkeys([b"GIF8"], gif.check),
    **dict.fromkeys([b"BM"], bmp.check),
    **dict.fromkeys([b"RIFF"], webp.check),
    **dict.fromkeys(tiff.PREFIXES, tiff.check),
}


def check_structure(stream: BinaryIO) -> None:
    """Raises Refused, whose message does not name the picture, for a file that could be too costly to read.

    stream: a seekable picture file; it is left at its beginning.
    """
    length = stream.seek(0, 2)
    require(length <= MAX_FILE_BYTES, f"{length:,} bytes, expected {MAX_FILE_BYTES:,} at most")
    stream.seek(0)
    prefix = stream.read(12)
    check = boxes.check if prefix[4:8] == b"ftyp" else next((c for p, c in _CHECKS.items() if prefix.startswith(p)), None)
    try:
        if check is not None:
            check(stream, length)
    except (EOFError, IndexError, struct.error) as error:
        raise Refused("contradicts itself or ends too early; save the picture anew, or leave it out") from error
    stream.seek(0)
