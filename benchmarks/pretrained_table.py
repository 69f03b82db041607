"""The pretrained CLIPs that docs/pretrained.md lists, and the table of them. Names and licences are typed, numbers are not."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.tables import RESULTS, read, table

RESULT = RESULTS / "pretrained.json"
REFERENCE = "ViT-B-16"  # the config whose time is 1
_HUB = "https://huggingface.co/laion"
_OPENAI = "https://huggingface.co/timm"
_UNSTATED = "see the model's page"


@dataclass(frozen=True)
class Listed:
    """Weights by open_clip's name, their licence as published, and the page that says it or may say it."""

    name: str
    licence: str
    source: str

    @property
    def config(self) -> str:
        """The name of open_clip's config."""
        return self.name.partition(":")[0]


LISTED = (
    Listed("ViT-B-32:openai", _UNSTATED, f"{_OPENAI}/vit_base_patch32_clip_224.openai"),
    Listed("ViT-B-16:openai", _UNSTATED, f"{_OPENAI}/vit_base_patch16_clip_224.openai"),
    Listed("ViT-L-14:openai", _UNSTATED, f"{_OPENAI}/vit_large_patch14_clip_224.openai"),
    Listed("ViT-L-14-336:openai", _UNSTATED, f"{_OPENAI}/vit_large_patch14_clip_336.openai"),
    Listed("ViT-B-32:laion2b_s34b_b79k", "MIT", f"{_HUB}/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    Listed("ViT-B-16:laion2b_s34b_b88k", "MIT", f"{_HUB}/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    Listed("ViT-B-16:datacomp_xl_s13b_b90k", "MIT", f"{_HUB}/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"),
    Listed("ViT-L-14:datacomp_xl_s13b_b90k", _UNSTATED, f"{_HUB}/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
    Listed("ViT-H-14:laion2b_s32b_b79k", "MIT", "https://github.com/mlfoundations/open_clip/issues/177"),
    Listed("ViT-bigG-14:laion2b_s39b_b160k", "MIT", f"{_HUB}/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
)


def pretrained_table() -> str:
    """One row per name, and below them what the times were measured on."""
    results = read(RESULT)
    header = ["", "picture", "patches", "parameters", "fp32", "fp16", f"time, {REFERENCE} = 1", "licence"]
    rows = [[f"`{listed.name}`", *_numbers(results, listed), f"[{listed.licence}]({listed.source})"] for listed in LISTED]
    return f"{table(header, rows)}\n{_caption(results)}"


def _numbers(results: dict[str, dict[str, dict[str, float]]], listed: Listed) -> list[str]:
    sizes = results["sizes"][listed.name]
    side, parameters = sizes["image_size"], sizes["parameters"]
    time = results["times"].get(listed.config)
    files = (f"{parameters * itemsize / 1e9:.1f} GB" for itemsize in (4, 2))
    shown = f"{time['ratio']:.2f}" if time else "not measured"
    return [f"{side} × {side}", str(sizes["patches"]), f"{parameters / 1e6:.0f} M", *files, shown]


def _caption(results: dict[str, dict[str, object]]) -> str:
    machine = results["machine"]
    return (
        "Parameters are those of both towers, and the sizes of the weights follow from them: 4 or 2 bytes each. Time: the "
        "exported picture graph alone for one picture, fp32, in ONNX Runtime, with random weights of this size and GELU: "
        f"CPU time of one thread, median of rounds in turn. {machine['cpu']}, shared with other work, "
        f"onnxruntime {machine['onnxruntime']}, torch {machine['torch']}, {machine['date']}.\n"
    )
