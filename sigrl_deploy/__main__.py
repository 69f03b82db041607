"""`python -m sigrl_deploy`: the command line."""

from sigrl_deploy.cli import main

main(prog_name="sigrl-deploy")
