"""SigRL in one's own Ray Data pipelines: `ship` a bundle with its labels, then `map_batches` with `Tagger`."""

from sigrl_deploy.ray.shipping import Shipped, ship
from sigrl_deploy.ray.tagger import Tagger

__all__ = ["Shipped", "Tagger", "ship"]
