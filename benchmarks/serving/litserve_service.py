"""LitServe around the same Recognizer: `python -m benchmarks.serving.litserve_service BUNDLE PORT [batches|workers]`.

`batches`: one worker, batches of up to 16, on all cores. `workers`: a worker a core, each with one thread and one picture.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve

from sigrl_deploy import Recognizer
from sigrl_deploy.machine import cpus

BATCH, PATIENCE = 16, 0.004  # as this project's own service has them on a GPU


class Tagging(litserve.LitAPI):  # type: ignore[misc]
    """Pictures in base64 → tags, in batches."""

    def __init__(self, bundle: str, threads: int | None, **how: Any) -> None:
        super().__init__(api_path="/v1/tag", **how)
        self.bundle, self.threads = bundle, threads

    def setup(self, device: str) -> None:
        self.recognizer = Recognizer(self.bundle, threads=self.threads)
        self.vocabulary = self.recognizer.vocabulary()

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["picture"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: Any) -> Any:
        pictures = x if isinstance(x, list) else [x]
        found = self.recognizer.recognize(pictures, self.vocabulary, batch_size=len(pictures))
        return found if isinstance(x, list) else found[0]

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, object]:
        return {"tags": [{"label": tag.label, "score": tag.score} for tag in output]}


def main() -> None:
    bundle, port, how = sys.argv[1:]
    if how == "batches":
        api, workers = Tagging(bundle, None, max_batch_size=BATCH, batch_timeout=PATIENCE), 1
    else:
        api, workers = Tagging(bundle, 1), cpus.threads()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=False)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
