"""open_clip model configs: heads and activation, which a checkpoint's shapes cannot tell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigrl_deploy.config import TextConfig, VisionConfig
from sigrl_deploy.errors import CheckpointError, UsageError

OPENAI = "openai"

_VISION_KEYS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "layers", "heads", "mlp_ratio"}


@dataclass(frozen=True)
class ClipConfig:
    """Both towers of one open_clip config. `name` is what error messages call it."""

    name: str
    embed_dim: int
    vision: VisionConfig
    text: TextConfig


def clip_config(value: str) -> ClipConfig | None:
    """`openai` → None (read off the shapes); else an open_clip config's name, or a JSON file in open_clip's format.

    Raises UsageError where there is no such config, CheckpointError where it asks for something other than a plain CLIP ViT.
    """
    if value == OPENAI:
        return None
    raw = _read_json(Path(value)) if value.endswith(".json") else _named(value)
    try:
        return _parse(value, raw.get("model_cfg", raw))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"--clip-config {value}: not an open_clip model config ({type(error).__name__}: {error}); expected embed_dim, "
            "vision_cfg and text_cfg as in open_clip/model_configs/ViT-B-16.json"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--clip-config {path}: cannot be read as JSON ({error}); give an open_clip model config") from None
    if not isinstance(raw, dict):
        raise UsageError(f"--clip-config {path}: holds no JSON object; give an open_clip model config")
    return raw


def _named(name: str) -> dict[str, Any]:
    import open_clip

    if name not in open_clip.list_models():
        raise UsageError(
            f"--clip-config {name}: no open_clip config of that name; choose one of open_clip.list_models(), "
            "a .json file, or openai"
        )
    return dict(open_clip.get_model_config(name))


def _parse(name: str, raw: dict[str, Any]) -> ClipConfig:
    from open_clip import CLIPTextCfg, CLIPVisionCfg

    quick_gelu = bool(raw.get("quick_gelu", False))
    vision = dict(raw["vision_cfg"])
    text = dict(raw["text_cfg"])
    _refuse_unknown(name, "vision_cfg", vision, CLIPVisionCfg(), _VISION_KEYS)
    _refuse_unknown(name, "text_cfg", text, CLIPTextCfg(), _TEXT_KEYS)
    vision = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "head_width": 64} | _only(vision, _VISION_KEYS)
    text = {"width": 512, "layers": 12, "heads": 8} | _only(text, _TEXT_KEYS)
    _check_sizes("vision_cfg", vision)
    _check_sizes("text_cfg", text)
    vision["heads"] = vision["width"] // vision.pop("head_width")
    for section, values in (("vision_cfg", vision), ("text_cfg", text)):
        if not values["heads"] or values["width"] % values["heads"]:
            raise ValueError(f"{section}.width = {values['width']} cannot be split into {values['heads']} heads")
    return ClipConfig(
        name=name,
        embed_dim=int(raw["embed_dim"]),
        vision=VisionConfig(quick_gelu=quick_gelu, **vision),
        text=TextConfig(quick_gelu=quick_gelu, **text),
    )


def _only(values: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in keys}


def _check_sizes(section: str, values: dict[str, Any]) -> None:
    for key, value in values.items():
        right = isinstance(value, (int, float)) if key == "mlp_ratio" else isinstance(value, int)
        if not right or value <= 0:
            raise ValueError(f"{section}.{key} = {value!r} is no size")


def _refuse_unknown(name: str, section: str, values: dict[str, Any], defaults: object, known: set[str]) -> None:
    for key, value in values.items():
        if key not in known and value != getattr(defaults, key, None):
            raise CheckpointError(
                f"open_clip config {name}: {section}.{key} = {value!r} is not supported; "
                "expected a plain CLIP ViT with a class token and a causal text transformer"
            )
    if isinstance(values.get("layers", 12), (list, tuple)):
        raise CheckpointError(f"open_clip config {name}: a ResNet has no patch tokens; expected a ViT")
