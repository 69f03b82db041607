"""Sends requests to a Triton server, by the tritonclient of the environment that this runs in: JSON in, JSON out.

In: {"protocol", "url", "model", "at_once", "requests": [{"pictures": [path …], "labels": [[text …] …] or null, "top"}]}.
Out: for each request {"answers": [[[label, score] …], error] …]} or {"failure": message}.
"""

import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def main():
    task = json.load(sys.stdin)
    if "configs" in task:
        json.dump([parsed(Path(path)) for path in task["configs"]], sys.stdout)
        return
    protocol = importlib.import_module(f"tritonclient.{task['protocol']}")
    with ThreadPoolExecutor(task["at_once"]) as pool:
        json.dump(list(pool.map(lambda request: ask(protocol, task, request), task["requests"])), sys.stdout)


def ask(protocol, task, request):
    rows = len(request["pictures"])
    pictures = [[Path(path).read_bytes()] for path in request["pictures"]]
    arrays = {"PICTURE": ("BYTES", np.array(pictures, dtype=object))}
    if request.get("labels") is not None:
        longest = max(map(len, request["labels"]))
        padded = [[text.encode() for text in row] + [b""] * (longest - len(row)) for row in request["labels"]]
        arrays["LABELS"] = ("BYTES", np.array(padded, dtype=object))
    if request.get("top") is not None:
        arrays["TOP"] = ("INT32", np.full((rows, 1), request["top"], np.int32))
    inputs = []
    for name, (kind, array) in arrays.items():
        inputs.append(protocol.InferInput(name, array.shape, kind))
        inputs[-1].set_data_from_numpy(array)
    client = protocol.InferenceServerClient(task["url"])  # of its own, since they are not for several threads
    try:
        answer = client.infer(task["model"], inputs)
    except Exception as error:
        return {"failure": str(error)}
    found = []
    for i in range(rows):
        labels, scores = answer.as_numpy("LABEL")[i], answer.as_numpy("SCORE")[i]
        tags = [[label.decode(), float(score)] for label, score in zip(labels, scores, strict=True) if label]
        found.append([tags, answer.as_numpy("ERROR")[i, 0].decode()])
    return {"answers": found}


def parsed(path):
    """A model's configuration, read by Triton's own schema, which refuses unknown fields."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    message = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


if __name__ == "__main__":
    main()
