"""HEIC pictures, which the package pillow-heif reads where it is installed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sigrl_deploy.errors import ImageError
from sigrl_deploy.extras import install_command
from sigrl_deploy.pictures.finding import find_pictures
from sigrl_deploy.pictures.reading import is_image_path, read_image
from tests.support.picture_files import scene
from tests.support.refusals import assert_refused

pillow_heif = pytest.importorskip("pillow_heif")

# Pillow's import system finds no such package; the rest of the process is as it is.
WITHOUT = """
import importlib.util, sys
sys.modules["pillow_heif"] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "pillow_heif" else find(name, *more)
"""


def heic(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=90, **options)
    return buffer.getvalue()


def close(image: Image.Image, expected: Image.Image) -> bool:
    """HEIC at quality 90 moves a picture with some noise by a few levels; a swap, a turn or a wrong depth by a hundred."""
    return (
        image.mode == "RGB" and image.size == expected.size and np.abs(np.asarray(image, int) - np.asarray(expected)).mean() < 8
    )


def test_a_heic_file_is_read_from_every_source_and_found_in_folders(tmp_path: Path) -> None:
    (tmp_path / "a.HEIC").write_bytes(heic(scene(61, 47)))
    assert find_pictures([str(tmp_path)], io.BytesIO()).paths == [str(tmp_path / "a.HEIC")]
    assert is_image_path("b.heif")
    with (tmp_path / "a.HEIC").open("rb") as stream:
        for source in (tmp_path / "a.HEIC", (tmp_path / "a.HEIC").read_bytes(), stream):
            assert close(read_image(source), scene(61, 47))
        assert not stream.closed
    assert not [name for name in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{name}").endswith("HEIC")]


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(heic(scene(61, 47)))
    scene(61, 47).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.heic")
    assert close(read_image(tmp_path / "a.jpg"), scene(61, 47))
    assert close(read_image(tmp_path / "b.heic"), scene(61, 47))


def test_nothing_else_in_the_process_opens_heic_because_of_it() -> None:
    data = heic(scene(61, 47))
    read_image(data)
    assert "HEIF" not in Image.OPEN
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(data))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_picture_is_turned_once(orientation: int) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    pillow_heif.encode("RGB", (61, 47), scene(61, 47).tobytes(), buffer, quality=90, exif=exif.tobytes())
    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}.get(orientation)
    upright = scene(61, 47) if turned is None else scene(61, 47).transpose(turned)
    assert close(read_image(buffer.getvalue()), upright)


def test_alpha_is_dropped_and_deep_colour_is_cut_to_eight_bits() -> None:
    transparent = scene(64, 48).convert("RGBA")
    transparent.putalpha(128)
    assert close(read_image(heic(transparent)), scene(64, 48))
    samples = np.asarray(scene(64, 48), np.uint16) * 257
    for twelve in (False, True):
        buffer, pillow_heif.options.SAVE_HDR_TO_12_BIT = io.BytesIO(), twelve
        try:
            pillow_heif.encode("RGB;16", (64, 48), samples.tobytes(), buffer, quality=90)
        finally:
            pillow_heif.options.SAVE_HDR_TO_12_BIT = False
        assert close(read_image(buffer.getvalue()), scene(64, 48))


def test_of_several_pictures_the_primary_one_is_read() -> None:
    file = pillow_heif.from_pillow(scene(64, 48).rotate(180))
    file.add_from_pillow(scene(48, 64))
    buffer = io.BytesIO()
    file.save(buffer, quality=90, primary_index=1)
    assert close(read_image(buffer.getvalue()), scene(48, 64))


def test_a_damaged_heic_file_is_refused() -> None:
    data = heic(scene(61, 47))
    for harmed in (data[: len(data) // 2], data[:40], data[:200] + bytes(len(data) - 200)):
        assert_refused(lambda harmed=harmed: read_image(harmed), ImageError, "<bytes>: ")


def test_the_error_without_the_package_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(heic(scene(61, 47)))
    (tmp_path / "b.jpg").write_bytes(heic(scene(61, 47)))
    code = (
        WITHOUT + "import io\nfrom sigrl_deploy.errors import SigRLError\n"
        "from sigrl_deploy.pictures.reading import read_image\n"
        "from sigrl_deploy.pictures.finding import find_pictures\nprint(find_pictures(['.'], io.BytesIO()))\n"
        "for path in ('a.heic', 'b.jpg'):\n    try: read_image(path)\n    except SigRLError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.splitlines() == [
        "Found(paths=['./b.jpg'], skipped=Counter({'.heic': 1}))",
        f"a.heic: is HEIC, and pillow-heif is not installed; {install_command('heif')}",
        f"b.jpg: is HEIC, and pillow-heif is not installed; {install_command('heif')}",
    ], run
