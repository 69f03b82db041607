"""The runtime: pictures and labels in, predictions out."""

from sigrl_deploy.recognizer.recognizer import Recognizer

__all__ = ["Recognizer"]
