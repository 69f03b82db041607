"""Peak memory and time of one training step at ViT-B/16 size, 925 labels: random weights, the zero-shot recipe.

python -m benchmarks.training_memory --batch-size 2
python -m benchmarks.training_memory --batch-size 1 --materialised     (about 10 GB a picture)
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from sigrl_deploy.config import Arch, GraphConfig, ModelConfig
from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.model import materialised
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.training.losses import ranking_loss
from sigrl_deploy.training.optim import build_optimizer
from sigrl_deploy.training.recipes import RECIPES, RecipeName
from sigrl_deploy.training.tasks import TaggingTask

DIM = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--labels", type=int, default=925)
    parser.add_argument("--materialised", action="store_true", help="the reference's form, nothing recomputed")
    args = parser.parse_args()
    torch.manual_seed(0)
    vision = VisionConfig(image_size=224, patch_size=16, width=768, layers=12, heads=12)
    model = SigRL(ModelConfig(Arch.SIGRL, DIM, 16, vision, graph=(GraphConfig(DIM, 4, 32), GraphConfig(128, 1, DIM))))
    recipe = RECIPES[RecipeName.ZERO_SHOT]
    label_embedding = torch.randn(args.labels, DIM)
    task = TaggingTask(model, label_embedding, recipe)
    optimizer = build_optimizer(task, recipe, vision.layers)
    pixels = torch.randn(args.batch_size, 3, 224, 224)
    targets = torch.where(torch.rand(args.batch_size, args.labels) < 0.01, 1, -1)
    start = time.perf_counter()
    if args.materialised:
        loss = ranking_loss(materialised.forward(model, pixels, label_embedding), targets)
    else:
        loss = task(pixels, targets)["loss"]
    loss.backward()
    optimizer.step()
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    form = "materialised" if args.materialised else "tiled"
    print(
        f"{form}, {args.labels} labels, batch {args.batch_size}: loss {loss.item():.3f}, {peak / 1e9:.2f} GB, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
