"""open_clip model configs, which tell what a checkpoint's shapes do not: the number of heads and the activation."""

from __future__ import annotations

import json
import reprlib
from functools import cache
from pathlib import Path
from typing import Any

from sigrl_deploy.config import TextConfig
from sigrl_deploy.errors import CheckpointError, UsageError
from sigrl_deploy.files import read_bounded
from sigrl_deploy.image_towers import HEAD_WIDTH, VIT, ResNetConfig, Size, VisionConfig, as_vit
from sigrl_deploy.structs import Checked

OPENAI = "openai"

_MAX_JSON = 1 << 20  # bytes
_VISION_KEYS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "layers", "heads", "mlp_ratio"}

Shapes = dict[str, int]  # "embed_dim", "vision.width", "text.layers" …; "vision.grid" is the root of the number of patches


class ClipConfig(Checked, frozen=True):
    """Both towers of one open_clip config. `name` is what error messages call it."""

    name: str
    embed_dim: Size
    vision: VisionConfig | ResNetConfig
    text: TextConfig

    @property
    def vit(self) -> VisionConfig:
        """`vision`, where it is a ViT. Raises ValueError for another tower."""
        return as_vit(self.vision)


def clip_config(value: str) -> ClipConfig | None:
    """The config that `value` names: one of open_clip's, that of `NAME:PRETRAINED`, or a JSON file in open_clip's format.

    None for "openai", whose convention the tensors' shapes determine. Raises UsageError where there is no such config,
    CheckpointError where it describes anything other than a plain CLIP ViT or ResNet.
    """
    if value == OPENAI:
        return None
    raw = _read_json(Path(value)) if value.endswith(".json") else _named(value)
    try:
        return _parse(value, raw.get("model_cfg", raw))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UsageError(
            f"is not an open_clip model config ({reason}); expected embed_dim, vision_cfg and text_cfg as in "
            "open_clip/model_configs/ViT-B-16.json",
            argument="clip_config",
            value=value,
        ) from None


def fitting_configs(shapes: Shapes, most: int = 3) -> list[str]:
    """Names of open_clip's configs that have these sizes, the shortest first."""
    fitting = [name for name, config in _all_configs().items() if shapes.items() <= _shapes(config).items()]
    return sorted(fitting, key=lambda name: (len(name), name))[:most]


@cache
def _all_configs() -> dict[str, ClipConfig]:
    """Those of open_clip's configs that are plain CLIP ViTs or ResNets, by name."""
    import open_clip

    found = {}
    for name in open_clip.list_models():
        try:
            found[name] = _parse(name, dict(open_clip.get_model_config(name)))
        except (AttributeError, CheckpointError, KeyError, TypeError, ValueError):
            continue
    return found


def _shapes(config: ClipConfig) -> Shapes:
    parts = {"vision": config.vision, "text": config.text}
    sizes = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.to_plain().items()}
    return sizes | {"embed_dim": config.embed_dim, "vision.grid": config.vision.grid}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(read_bounded(path, _MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        problem = f"cannot be read as JSON ({error}); give an open_clip model config"
        raise UsageError(problem, argument="clip_config", value=path) from None
    if not isinstance(raw, dict):
        raise UsageError("holds no JSON object; give an open_clip model config", argument="clip_config", value=path)
    return raw


def _named(name: str) -> dict[str, Any]:
    import open_clip

    model, _, pretrained = name.partition(":")
    listed = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}
    if model not in open_clip.list_models() or (pretrained and not listed):
        problem = (
            "open_clip has no such config; choose one of open_clip.list_models(), NAME:PRETRAINED of "
            "open_clip.list_pretrained(), a .json file, or openai"
        )
        raise UsageError(problem, argument="clip_config", value=name)
    raw = dict(open_clip.get_model_config(model))
    # open_clip lists OpenAI's weights under ViT-B-16 too, whose config has a different activation from theirs.
    return raw | {"quick_gelu": raw.get("quick_gelu", False) or listed.get("quick_gelu", False)}


def _parse(name: str, raw: dict[str, Any]) -> ClipConfig:
    from open_clip import CLIPTextCfg, CLIPVisionCfg

    quick_gelu = bool(raw.get("quick_gelu", False))
    vision = dict(raw["vision_cfg"])
    text = dict(raw["text_cfg"])
    _refuse_unknown(name, "vision_cfg", vision, CLIPVisionCfg(), _VISION_KEYS)
    _refuse_unknown(name, "text_cfg", text, CLIPTextCfg(), _TEXT_KEYS)
    text = {"width": 512, "layers": 12, "heads": 8} | _only(text, _TEXT_KEYS)
    _check_divisor("text_cfg", text, "heads")
    tower = _resnet(vision) if isinstance(vision.get("layers"), (list, tuple)) else _vit(vision) | {"quick_gelu": quick_gelu}
    towers = {"vision": tower, "text": text | {"quick_gelu": quick_gelu}}
    return ClipConfig.from_plain({"name": name, "embed_dim": raw["embed_dim"], **towers})


def _vit(values: dict[str, Any]) -> dict[str, Any]:
    values = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "head_width": 64} | _only(values, _VISION_KEYS)
    _check_divisor("vision_cfg", values, "head_width")
    return values | {"tower": VIT, "heads": values["width"] // values.pop("head_width")}


def _resnet(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("head_width", HEAD_WIDTH) != HEAD_WIDTH:
        raise ValueError(f"vision_cfg.head_width = {values['head_width']!r}, expected {HEAD_WIDTH} in a ResNet")
    sizes = {"image_size": 224, "width": 64} | _only(values, {"image_size", "width"})
    return sizes | {"tower": "resnet", "blocks": list(values["layers"])}


def _check_divisor(section: str, values: dict[str, Any], key: str) -> None:
    """Raise ValueError unless the number of heads, or the width of one, divides the width."""
    width, divisor = values["width"], values[key]
    if type(width) is not int or type(divisor) is not int or not 0 < divisor <= width or width % divisor:
        raise ValueError(f"{section}.width = {reprlib.repr(width)} cannot be split by {key} = {reprlib.repr(divisor)}")


def _only(values: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in keys}


def _refuse_unknown(name: str, section: str, values: dict[str, Any], defaults: object, known: set[str]) -> None:
    for key, value in values.items():
        if key not in known and value != getattr(defaults, key, None):
            raise CheckpointError(
                f"open_clip config {name}: {section}.{key} = {reprlib.repr(value)} is not supported; "
                "expected a plain CLIP ViT with a class token, or its ResNet, and a causal text transformer"
            )
