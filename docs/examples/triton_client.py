"""Tags pictures with a Triton server that serves `sigrl-deploy export triton`. Needs `pip install 'tritonclient[grpc,http]'`.

python triton_client.py cat.jpg cup.jpg --labels cat dog "cup of coffee" --top 3
python triton_client.py cat.jpg --label-file labels.json --grpc
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.utils

MAX_BATCH_SIZE = 16  # of the model `sigrl`, in its config.pbtxt


def tag(
    client: Any,
    protocol: ModuleType,
    pictures: Sequence[bytes],
    labels: Sequence[str] | None = None,
    top: int | None = None,
    threshold: float | None = None,
) -> Iterator[tuple[list[tuple[str, float]], str]]:
    """For each picture its labels with their scores, best first, and "" or what is wrong with the picture.

    protocol: `tritonclient.http` or `tritonclient.grpc`, which made the client.
    pictures: bytes of picture files, at most as many as the model's `max_batch_size`.
    labels: the labels, or one text, which is the JSON of a label file; None for those of the bundle.
    """
    rows = len(pictures)
    arrays: dict[str, tuple[str, Any]] = {"PICTURE": ("BYTES", np.array([[picture] for picture in pictures], dtype=object))}
    if labels is not None:
        texts = np.array([label.encode() for label in labels], dtype=object)
        arrays["LABELS"] = ("BYTES", np.tile(texts, (rows, 1)))  # a row for each picture; they may differ
    if top is not None:
        arrays["TOP"] = ("INT32", np.full((rows, 1), top, np.int32))
    if threshold is not None:
        arrays["THRESHOLD"] = ("FP32", np.full((rows, 1), threshold, np.float32))
    inputs = []
    for name, (kind, array) in arrays.items():
        tensor = protocol.InferInput(name, array.shape, kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    answer = client.infer("sigrl", inputs)
    for names, scores, (error,) in zip(*(answer.as_numpy(name) for name in ("LABEL", "SCORE", "ERROR")), strict=True):
        # Rows are filled up with empty labels to the length of the longest.
        found = [(name.decode(), float(score)) for name, score in zip(names, scores, strict=True) if name]
        yield found, error.decode()


def in_batches(pictures: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    """Parts of at most `size` pictures, in order."""
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    labelled = parser.add_mutually_exclusive_group()
    labelled.add_argument("--labels", nargs="+", help="[default: those of the bundle]")
    labelled.add_argument(
        "--label-file", type=Path, help="a label file in JSON; `sigrl-deploy labels show FILE --json` makes one"
    )
    parser.add_argument("--top", type=int)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--grpc", action="store_true", help="gRPC instead of HTTP")
    parser.add_argument("--url", help="host and port [default: localhost:8000, and localhost:8001 for gRPC]")
    options = parser.parse_args()
    if options.grpc:
        import tritonclient.grpc as protocol
    else:
        import tritonclient.http as protocol
    try:
        pictures = [path.read_bytes() for path in options.pictures]
        labels = [json.dumps(json.loads(options.label_file.read_bytes()))] if options.label_file else options.labels
    except (OSError, ValueError) as error:
        parser.error(f"cannot be read: {error}")
    address = (options.url or f"localhost:{8001 if options.grpc else 8000}").removeprefix("http://")
    try:
        with protocol.InferenceServerClient(address) as client:
            found = [
                answer
                for batch in in_batches(pictures, MAX_BATCH_SIZE)
                for answer in tag(client, protocol, batch, labels, options.top, options.threshold)
            ]
    # The HTTP client raises what its connections do.
    except (OSError, tritonclient.utils.InferenceServerException) as error:
        parser.exit(1, f"error: {address}: {error}\n")
    for path, (tags, error) in zip(options.pictures, found, strict=True):
        print(f"{path}: {error or ', '.join(f'{label} {score:.3f}' for label, score in tags)}")


if __name__ == "__main__":
    main()
