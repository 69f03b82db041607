"""A picture's answer as JSON."""

from __future__ import annotations

from typing import Any

from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.serve.jobs import Answer
from sigrl_deploy.tagging.drawing import data_uri, heat
from sigrl_deploy.tagging.output import rounded

MOST_HEATMAPS = 23  # of a picture


def as_json(answer: Answer, vocabulary: str | None) -> dict[str, Any]:
    """See docs/serving.md. Drawing heat maps takes milliseconds each, so call this in a thread where there are some."""
    found: dict[str, Any] = {"vocabulary": vocabulary, "size": list(answer.size)}
    maps: list[str] = []
    if answer.picture is not None:
        assert answer.box is not None
        found["seen"] = [round(edge, 2) for edge in answer.seen]
        drawn = answer.predictions[:MOST_HEATMAPS]
        maps = [data_uri(heat(answer.picture, answer.box, prediction)) for prediction in drawn]
    tags = [_tag(prediction) for prediction in answer.predictions]
    for tag, uri in zip(tags, maps, strict=False):
        tag["heatmap"] = uri
    return found | {"tags": tags}


def _tag(prediction: Prediction) -> dict[str, Any]:
    values = {name: getattr(prediction, name) for name in ("label", "score", "threshold", "probability", "child")}
    return {name: rounded(value) if isinstance(value, float) else value for name, value in values.items() if value is not None}
