"""Where the command line starts: `sigrl-deploy`, `python -m sigrl_deploy`, and the scripts in export/."""

import sys

from sigrl_deploy.cli.interrupts import leave_at_once


def run(*verb: str, name: str = "sigrl-deploy") -> None:
    """Run a verb, by default the one that the arguments of this process name, and exit."""
    leave_at_once()
    from sigrl_deploy.cli.main import run_verb

    run_verb(verb, sys.argv[1:], name)


if __name__ == "__main__":
    run()
