"""The command line, `hf-progressive`: argparse in front of the package's functions."""

from hf_progressive.cli.commands import EXIT_BAD_INPUT, EXIT_CHECK_FAILED, EXIT_DONE, Outcome, run_ladder_command
from hf_progressive.cli.parser import EXIT_INTERRUPTED, build_parser, execute, main

__all__ = [
    "EXIT_BAD_INPUT",
    "EXIT_CHECK_FAILED",
    "EXIT_DONE",
    "EXIT_INTERRUPTED",
    "Outcome",
    "build_parser",
    "execute",
    "main",
    "run_ladder_command",
]
