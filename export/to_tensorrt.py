"""Bundle → TensorRT engines, from a checkout: the same as `sigrl-deploy export tensorrt`.

python export/to_tensorrt.py bundle/
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sigrl_deploy.__main__ import run

if __name__ == "__main__":
    run("export", "tensorrt", name="to_tensorrt.py")
