"""What one would write first, FastAPI around a Recognizer: `python -m benchmarks.serving.plain_service BUNDLE PORT`."""

from __future__ import annotations

import base64
import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from sigrl_deploy import Recognizer


class Question(BaseModel):
    """One picture in base64."""

    picture: str


def make_app(recognizer: Recognizer) -> FastAPI:
    vocabulary = recognizer.vocabulary()
    app = FastAPI()

    @app.post("/v1/tag")
    def tag(question: Question) -> dict[str, object]:
        (found,) = recognizer.recognize([base64.b64decode(question.picture)], vocabulary)
        return {"tags": [{"label": tag.label, "score": tag.score} for tag in found]}

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(Recognizer(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", backlog=2048)
