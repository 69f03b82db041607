"""`sigrl-deploy` with a service that is changed as the environment says, to show what takes long or cannot be had.

KEEP_ALIVE: seconds that an idle connection stays open.
GATE: a file; the engine fails at a white picture, as soon as the file is there, and at every picture after it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from sigrl_deploy.__main__ import run
from sigrl_deploy.recognizer.pipeline import Pipeline
from sigrl_deploy.serve import server

if "KEEP_ALIVE" in os.environ:
    server._KEEP_ALIVE = float(os.environ["KEEP_ALIVE"])  # type: ignore[assignment]

if "GATE" in os.environ:
    tag, lost = Pipeline.tag, list[bool]()

    def tag_or_fail(self: Pipeline, views: Sequence[Any], *others: Any) -> Any:
        if any(view.pixels.min() > 1.5 for view in views):
            while not os.path.exists(os.environ["GATE"]):
                time.sleep(0.01)
            lost.append(True)
        if lost:
            raise RuntimeError("the device is lost")
        return tag(self, views, *others)

    Pipeline.tag = tag_or_fail  # type: ignore[method-assign]

run()
