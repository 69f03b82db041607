"""A picture's answer as JSON."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.serve.tagger import Answer
from sigrl_deploy.tagging.drawing import MAX_PANEL, MIN_PANEL, heat, scaled

MOST_HEATMAPS = 23  # of a picture


def as_json(answer: Answer, vocabulary: str | None) -> dict[str, Any]:
    """See docs/serving.md. Drawing heat maps takes milliseconds each, so call this in a thread where there are some."""
    found: dict[str, Any] = {"vocabulary": vocabulary, "size": list(answer.size)}
    maps: list[str] = []
    if answer.picture is not None:
        found["seen"] = [round(edge, 2) for edge in answer.seen]
        picture, box = scaled(answer.picture, answer.seen, MIN_PANEL, MAX_PANEL)
        maps = [_data_uri(heat(picture, box, prediction)) for prediction in answer.predictions[:MOST_HEATMAPS]]
    tags = [_tag(prediction) for prediction in answer.predictions]
    for tag, drawn in zip(tags, maps, strict=False):
        tag["heatmap"] = drawn
    return found | {"tags": tags}


def _tag(prediction: Prediction) -> dict[str, Any]:
    values = {name: getattr(prediction, name) for name in ("label", "score", "threshold", "probability", "child")}
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in values.items() if value is not None}


def _rounded(score: float) -> float:
    """The fewest digits that read back as the same fp32 score."""
    return float(str(np.float32(score)))


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
