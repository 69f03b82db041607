"""SECURITY.md names bounds; they are those of the code."""

import pytest

from sigrl_deploy import files
from sigrl_deploy.bundle import manifest
from sigrl_deploy.checkpoints import open_clip_configs as clip_config
from sigrl_deploy.checkpoints import pickles, torch_files, weights
from sigrl_deploy.labels import names
from sigrl_deploy.pictures.structure import jpeg, limits, png, tiff
from sigrl_deploy.vocabulary import tokenizer
from tests.support.paths import ROOT

PAGE = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
BOUNDS = {
    f"{torch_files.MAX_PICKLE >> 20} MiB of pickle": "a checkpoint's pickle",
    f"{pickles.MAX_TENSORS:,} tensors": "tensors of a checkpoint",
    f"{weights.MAX_HEADER >> 20} MiB of a safetensors file's header": "a header",
    f"Config files: {clip_config._MAX_JSON >> 20} MiB": "a config file",
    f"{manifest._MOST_MANIFEST_BYTES >> 20} MiB of manifest": "a manifest",
    f"{tokenizer._MOST_BYTES >> 20} MiB of tokenizer": "a tokenizer",
    f"{files.MOST_ARRAY_BYTES >> 30} GiB of vocabulary": "a vocabulary",
    f"{files.MOST_BYTES >> 30} GiB of any other file": "any other file of a bundle",
    f"{names._MOST_BYTES >> 20} MiB of a label file": "a label file",
    f"{names.MAX_LABEL_LENGTH} characters a label": "a label",
}


@pytest.mark.parametrize("text", BOUNDS, ids=BOUNDS.get)
def test_the_page_names_the_bound(text: str) -> None:
    assert text in PAGE


PICTURES = [
    f"{limits.MAX_PIXELS // 10**6} megapixels (WebP, AVIF, HEIC: {limits.MAX_PIXELS_WHOLE // 10**6})",
    f"{limits.MAX_SIDE:,} pixels a side",
    f"{limits.MAX_FILE_BYTES >> 30} GiB a file (WebP, AVIF, HEIC: {limits.MAX_BYTES_WHOLE >> 20} MiB)",
    f"JPEG: {jpeg.MAX_SCAN_BYTES >> 20} MiB of picture data",
    f"PNG: {png.MAX_RAW_BYTES // 10**6} MB, TIFF: {tiff.MAX_RAW_BYTES // 10**6} MB of samples",
]


@pytest.mark.parametrize("text", PICTURES)
def test_the_page_names_the_bounds_of_pictures(text: str) -> None:
    assert text in PAGE
