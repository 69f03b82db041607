"""What the models of a repository and their tensors are called."""

from __future__ import annotations

from sigrl_deploy.bundle.manifest import Manifest

FRONT, VISUAL, TEXT = "sigrl", "sigrl_visual", "sigrl_text"
VERSION = 1  # of all three: a front model asks for the graphs of its own export
BUNDLE = "bundle"  # folder of the front model's version: the bundle without its graphs
MOST_LABELS = "most_labels"  # parameter of the front model

PICTURE, LABELS, TOP, THRESHOLD = "PICTURE", "LABELS", "TOP", "THRESHOLD"  # inputs of the front model
LABEL, SCORE, ERROR = "LABEL", "SCORE", "ERROR"  # its outputs


def visual_inputs(manifest: Manifest) -> dict[str, list[int | str]]:
    """The inputs of the visual graph, each with its shape after the first axis."""
    rows: list[int | str] = [manifest.embed_dim]
    pixels: list[int | str] = [3, manifest.image_size, manifest.image_size]
    vocabulary = {"label_embedding": rows, "graph_projection": rows} if manifest.arch.has_graph else {}
    return {"pixels": pixels} | vocabulary


def visual_outputs(manifest: Manifest) -> dict[str, list[int | str]]:
    """The outputs of the visual graph, as `visual_inputs`."""
    local: dict[str, list[int | str]] = {"local_feature": [manifest.local_features, manifest.embed_dim]}
    whole: dict[str, list[int | str]] = {"global_feature": [manifest.embed_dim]}
    return (local if manifest.arch.has_local else {}) | (whole if manifest.arch.has_global else {})


def text_inputs(manifest: Manifest) -> dict[str, list[int | str]]:
    """The inputs of the text graph, as `visual_inputs`."""
    cached: dict[str, list[int | str]] = {"cached_embedding": [manifest.embed_dim]} if manifest.arch.has_graph else {}
    return cached | ({"token_ids": ["tokens"]} if manifest.context_length else {})


def text_outputs(manifest: Manifest) -> dict[str, list[int | str]]:
    """The outputs of the text graph, as `visual_inputs`."""
    rows: list[int | str] = [manifest.embed_dim]
    return {"label_embedding": rows} | ({"graph_projection": rows} if manifest.arch.has_graph else {})
