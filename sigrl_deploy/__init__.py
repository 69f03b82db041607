"""Deploy SigRL open-vocabulary image tagging: `Recognizer(bundle)` tags pictures with any list of labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sigrl_deploy.version import __version__

if TYPE_CHECKING:
    from sigrl_deploy.errors import ImageError, SigRLError
    from sigrl_deploy.recognizer import Recognizer, Tag
    from sigrl_deploy.vocabulary.label_files import read_labels
    from sigrl_deploy.vocabulary.vocabulary import Vocabulary

__all__ = ["ImageError", "Recognizer", "SigRLError", "Tag", "Vocabulary", "__version__", "read_labels"]

_HOME = {
    "ImageError": "errors",
    "SigRLError": "errors",
    "Recognizer": "recognizer",
    "Tag": "recognizer",
    "Vocabulary": "vocabulary.vocabulary",
    "read_labels": "vocabulary.label_files",
}


def __getattr__(name: str) -> object:
    # Imported when used: `sigrl-deploy --help` answers at once only if the package itself costs nothing.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
