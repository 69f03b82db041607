"""Deploy SigRL open-vocabulary image tagging.

>>> from sigrl_deploy import Recognizer
>>> with Recognizer("bundle") as recognizer:
...     for predictions in recognizer.recognize(["cat.jpg", "cup.jpg"], ["cat", "cup of coffee", "rocket"]):
...         print([(prediction.label, prediction.score) for prediction in predictions])
[...]
[...]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sigrl_deploy.version import __version__

if TYPE_CHECKING:
    from sigrl_deploy.config import Backend, Device, Precision
    from sigrl_deploy.errors import ImageError, SigRLError
    from sigrl_deploy.labels.label_set import Label, LabelSet
    from sigrl_deploy.recognizer import Recognizer
    from sigrl_deploy.recognizer.predictions import Prediction, Record
    from sigrl_deploy.recognizer.thresholds import Thresholds
    from sigrl_deploy.vocabulary.vocabulary import Vocabulary

__all__ = [
    "Backend",
    "Device",
    "ImageError",
    "Label",
    "LabelSet",
    "Precision",
    "Prediction",
    "Recognizer",
    "Record",
    "SigRLError",
    "Thresholds",
    "Vocabulary",
    "__version__",
]

_HOME = {
    "Backend": "config",
    "Device": "config",
    "ImageError": "errors",
    "Label": "labels.label_set",
    "LabelSet": "labels.label_set",
    "Precision": "config",
    "Prediction": "recognizer.predictions",
    "Recognizer": "recognizer",
    "Record": "recognizer.predictions",
    "SigRLError": "errors",
    "Thresholds": "recognizer.thresholds",
    "Vocabulary": "vocabulary.vocabulary",
}


def __getattr__(name: str) -> object:
    # Imported when used: `sigrl-deploy --help` answers at once only if the package itself costs nothing.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
