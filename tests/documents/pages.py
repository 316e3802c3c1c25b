"""Run a page's code blocks in order, as a reader would: `python pages.py PAGE`, in the folder to run them in.

Blocks of `bash` and `python` are run, all `python` of a page in one namespace; a block below
`<!-- not run: REASON -->` is not. Blocks of other languages are for looking at.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)^```$", re.M | re.S
)


class Block(NamedTuple):
    language: str
    code: str
    reason: str | None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(match["language"], match["code"], match["reason"]) for match in _BLOCK.finditer(text)]


def run(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__page__"}
    for number, block in enumerate(blocks_of(page), start=1):
        if block.reason is not None:
            continue
        sys.stdout.write(f"--- block {number} ({block.language}) of {page}\n{block.code}")
        sys.stdout.flush()
        if block.language == "bash":
            subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], check=True)
        else:
            exec(compile(block.code, f"{page}, block {number}", "exec"), namespace)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
