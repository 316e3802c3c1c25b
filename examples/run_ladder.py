"""Train a ladder: `accelerate launch examples/run_ladder.py [--config FILE] [--output-dir DIR] [key.path=value …]`."""

import argparse
import sys
from pathlib import Path

from hf_progressive import cli

DEFAULT_CONFIG = Path(__file__).parent.parent / "configs" / "trunk_small.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a ladder: grow, verify, train, measure and report every rung.")
    parser.add_argument("--config", default=str(DEFAULT_CONFIG), help="a ladder's YAML (default: trunk_small.yaml)")
    parser.add_argument("--output-dir", help="the run folder; default: runs/ and the ladder's name")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="overrides of the configuration")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key.path=value", help="the same")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line on stdout")
    options = parser.parse_args()
    options.set += options.overrides
    return cli.execute(cli.run_ladder_command, options)


if __name__ == "__main__":
    sys.exit(main())
