"""Checkpoint → bundle, from a checkout: the same as `sigrl-deploy export onnx`.

python export/to_onnx.py CKPT
python export/to_onnx.py ViT-B-16:openai
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sigrl_deploy.__main__ import run

if __name__ == "__main__":
    run("export", "onnx", name="to_onnx.py")
