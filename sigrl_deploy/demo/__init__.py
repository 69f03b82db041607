"""The demo: the SigRL model that comes with the package, exported and run on pictures that it has never seen."""

from sigrl_deploy.demo.run import CHECKPOINT, LABELS, PICTURES, run_demo

__all__ = ["CHECKPOINT", "LABELS", "PICTURES", "run_demo"]
