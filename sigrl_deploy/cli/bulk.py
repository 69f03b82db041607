"""`sigrl-deploy bulk`."""

from __future__ import annotations

import logging
from typing import Any

import click

from sigrl_deploy.cli.options import (
    background_option,
    batch_size_option,
    bundle_option,
    cache_option,
    check_finite,
    crop_option,
    engine_options,
    labels_option,
    rescale_option,
    running_options,
    threshold_option,
    thresholds_option,
    top_option,
)

log = logging.getLogger(__name__)


@click.command()
@click.argument("source", nargs=-1, required=True)
@bundle_option
@labels_option
@background_option
@click.option("--out", required=True, metavar="DEST", help="Folder for Parquet files: a path, s3://... or gs://...")
@top_option
@threshold_option
@thresholds_option
@rescale_option
@click.option(
    "--column", help="Of Parquet files: bytes of pictures, or their paths [default: the first of bytes, image, path there is]."
)
@click.option("--key", help="Of Parquet files: what names each picture in the output [default: key or path, or file#row].")
@click.option("--endpoint", metavar="URL", help="Server of s3:// and gs://, such as http://127.0.0.1:9000.")
@click.option("--workers", type=click.IntRange(1), help="Processes that tag [default: as many as fit].")
@click.option("--cpus-per-worker", type=click.IntRange(1), help="CPUs of each [default: 1, or its share of a node with GPUs].")
@click.option("--gpus-per-worker", type=click.FloatRange(0), help="GPUs of each [default: 1 where there are any].")
@click.option("--address", help="A running Ray cluster, such as ray-head:6379 or auto [default: starts Ray here].")
@click.option("--shard", metavar="I/N", help="Tag the I-th of N parts only, on machines without a cluster.")
@click.option("--dry-run", is_flag=True, help="Count the pictures, and estimate the time from a sample.")
@batch_size_option
@crop_option
@running_options
@cache_option
def bulk(source: tuple[str, ...], shard: str | None, **options: Any) -> None:
    """Tag SOURCE with Ray Data: folders of pictures, *.parquet files or *.tar files, on disks or in buckets (s3://, gs://).

    The same command goes on with a run that was stopped.
    """
    from sigrl_deploy.extras import require

    require("ray", "pyarrow", extra="ray")
    from sigrl_deploy.bulk.cluster import quiet_ray

    quiet_ray()  # before anything imports Ray
    from sigrl_deploy.bulk.options import BulkOptions, Shard
    from sigrl_deploy.bulk.run import run_bulk

    check_finite(options, "threshold")
    chosen = BulkOptions(source, shard=Shard.parse(shard), engine=engine_options(options), **options)
    try:
        failed = run_bulk(chosen)
    except KeyboardInterrupt:
        log.info("the same command goes on where this one stopped")
        raise
    if failed:
        log.error("%d picture%s could not be read or scored; see the column error", failed, "" if failed == 1 else "s")
        raise SystemExit(1)
