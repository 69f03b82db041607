"""SECURITY.md names bounds; they are those of the code."""

from pathlib import Path

import pytest

from sigrl_deploy import bundle, clip_config, files, pickles, tokenizer, torch_files, vocabulary, weights

PAGE = " ".join((Path(__file__).parent.parent / "SECURITY.md").read_text(encoding="utf-8").split())
BOUNDS = {
    f"{torch_files.MAX_PICKLE >> 20} MiB of pickle": "a checkpoint's pickle",
    f"{pickles.MAX_TENSORS:,} tensors": "tensors of a checkpoint",
    f"{weights.MAX_HEADER >> 20} MiB of a safetensors file's header": "a header",
    f"Config files: {clip_config._MAX_JSON >> 20} MiB": "a config file",
    f"{bundle._MOST_MANIFEST_BYTES >> 20} MiB of manifest": "a manifest",
    f"{tokenizer._MOST_BYTES >> 20} MiB of tokenizer": "a tokenizer",
    f"{files.MOST_ARRAY_BYTES >> 30} GiB of vocabulary": "a vocabulary",
    f"{files.MOST_BYTES >> 30} GiB of any other file": "any other file of a bundle",
    f"{vocabulary._MOST_LABEL_BYTES >> 20} MiB of a label file": "a label file",
    f"{vocabulary.MAX_LABEL_LENGTH} characters a label": "a label",
}


@pytest.mark.parametrize("text", BOUNDS, ids=BOUNDS.get)
def test_the_page_names_the_bound(text: str) -> None:
    assert text in PAGE
