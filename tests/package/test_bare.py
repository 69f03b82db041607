"""Scores where open_clip, ftfy and platformdirs are absent, and the tree is on the path without being installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sigrl_deploy.checkpoints.eager import embed_labels
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.vocabulary.tokenizer import write_clip_tokenizer
from tests.support.paths import ROOT, SUPPORT

LABELS = ["cat", "Cup & saucer's <rim>", "rocket"]
TOLERANCE = 1e-5  # fp32 in another order of operations


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not in the interpreter")
def test_from_weights_to_scores_plain_and_fused(weights: Path, tmp_path: Path) -> None:
    write_clip_tokenizer(tmp_path / "tokenizer.json")
    files = [weights / "sigrl.pth", weights / "text.pth", tmp_path / "tokenizer.json", tmp_path / "out.npz"]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "SIGRL_DEPLOY_CACHE": str(tmp_path / "cache"),
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, SUPPORT / "bare_child.py", *files, *LABELS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(files[-1])
    assert Path(str(found["home"])).parent == ROOT / "sigrl_deploy"
    assert found["versions"].tolist() == ["python", "sigrl-deploy", "torch"]
    model = load_model(CheckpointOptions(files[0], text_tower=str(files[1]))).model
    with torch.inference_mode():
        embedding = embed_labels(model, model.config.arch.default_template, LABELS)
        expected = model(torch.from_numpy(found["pixels"]), embedding).numpy()
    for scores in (found["plain"], found["fused"]):
        assert np.abs(scores - expected).max() < TOLERANCE
