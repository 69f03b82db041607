"""`sigrl-deploy doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from sigrl_deploy.cli.options import PATH, cache_option


@click.command()
@click.argument("bundle", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@cache_option
def doctor(bundle: Path | None, as_json: bool, cache_dir: Path | None) -> None:
    """Show what runs here and why the rest does not, with the command that fixes it, and which engines of BUNDLE fit.

    Exit status 3 where BUNDLE cannot be used. An engine that does not fit does not count: it is built again, or another backend
    runs.
    """
    from sigrl_deploy.doctor import examine
    from sigrl_deploy.machine.cache_folder import default_cache_dir

    report = examine(cache_dir or default_cache_dir(), bundle)
    click.echo(report.to_json() if as_json else report.to_text(), nl=False)
    if not report.bundle_is_fine:
        raise SystemExit(3)
