"""A Python model for Triton in place of its ONNX Runtime backend, which the server in tests does not have: same inputs, same
outputs, the same file. Runs in the server's own processes.
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.run(request) for request in requests]

    def run(self, request):
        feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        failing = os.environ.get("STAND_IN_FAILS_FROM")
        if failing and len(feeds.get("pixels", ())) >= int(failing):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("no memory for this batch"))
        names = [output.name for output in self.session.get_outputs()]
        outputs = self.session.run(names, feeds)
        tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in zip(names, outputs, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)
