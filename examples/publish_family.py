"""Publish the rungs of a finished run, or of one under way, and gather them in a collection.

    python examples/publish_family.py runs/trunk_small 'ORG/small-{name}' --license apache-2.0 --dry-run

lists what would be sent and shows the cards; without --dry-run it is sent. The token comes from HF_TOKEN or from
`hf auth login`. Run it as often as you like: what the Hub holds already is not sent again.
"""

import argparse
import logging
import sys

from hf_progressive.publishing import publish_family


def main() -> int:
    parser = argparse.ArgumentParser(description="Publish a ladder's rungs on the Hub.")
    parser.add_argument("run_dir", help="the run folder that `hf-progressive ladder` wrote")
    parser.add_argument("pattern", help="the rungs' repositories, with {name} for a rung's name: ORG/{name}")
    parser.add_argument("--private", action="store_true", help="keep the repositories from the public")
    parser.add_argument("--license", help="the weights' licence, by its identifier on the Hub, such as apache-2.0")
    parser.add_argument("--language", nargs="+", default=[], help="languages of the data: ISO 639 codes, or code")
    parser.add_argument("--collection", metavar="TITLE", help="gather the rungs in a collection of this title")
    parser.add_argument("--dry-run", action="store_true", help="send nothing; list the files and show the cards")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        addresses = publish_family(**vars(options))
    except (OSError, ValueError) as error:
        print(f"publish_family: {error}", file=sys.stderr)
        return 2
    print("\n".join(addresses))
    return 0


if __name__ == "__main__":
    sys.exit(main())
