"""``python -m hf_progressive``: the same program as ``hf-progressive``."""

import sys

from hf_progressive.cli import main

if __name__ == "__main__":
    sys.exit(main())
