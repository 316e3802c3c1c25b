"""Blocks of a corpus that is tokenized while it is trained on."""

import atexit
import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from hf_progressive import storage
from hf_progressive.data.blocks import Block, as_block
from hf_progressive.data.parts import TokenParts

logger = logging.getLogger(__name__)

BEAT_NAME, FAILURE_NAME = "beat", "failed.json"
"""Touched every second by the process that reads ahead; written by it where the source fails."""

_POLL_SECONDS = 0.1
_SECONDS_BEFORE_WORD = 60.0
_SECONDS_OF_SILENCE = 300.0  # more than a network file system takes to show a time stamp, or a machine to start Python

_readers: dict[tuple[int, Path], tuple[subprocess.Popen[bytes], int]] = {}
"""Reading processes, each with the tokens it is to read, by the process that started it and the corpus folder."""


class TokenStream:
    """The blocks of a stream, beginning again at its start where it ends.

    The blocks are those that storing the whole corpus, in the source's order, would give. One process for all reads
    the source ahead of training and leaves token ids on the disk, part by part; whoever wants a block maps its part
    into memory, and waits where it has not been written yet. So the order is the same on any number of processes and
    of workers, a run that goes on reads on, and nothing is tokenized twice, for the next rung or a from-scratch
    baseline. A token takes two bytes on the disk, four with a vocabulary above 65,536.
    """

    def __init__(self, folder: Path, parts: TokenParts, *, context: int):
        self.folder = folder
        self.parts = parts
        self.context = context

    @property
    def length(self) -> int | None:
        """Whole blocks in the stream; None as long as its end has not been seen."""
        if not self.parts.is_whole:
            return None
        self.parts.refresh()
        return self.parts.tokens // self.context

    def read_ahead(self, blocks: int) -> None:
        """See to it that a process reads so many blocks from the stream's start; done by the first of a launch."""
        self.parts.refresh()
        tokens = blocks * self.context
        if int(os.environ.get("RANK", "0")) != 0 or self.parts.is_whole or self.parts.tokens >= tokens:
            return
        own = _readers.get((os.getpid(), self.folder))
        if own is not None and own[0].poll() is None and own[1] >= tokens:
            return
        self.stop_reading()
        self.parts.folder.mkdir(parents=True, exist_ok=True)
        (self.parts.folder / FAILURE_NAME).unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "hf_progressive.data.ahead", str(self.folder), str(tokens)]
        # It ends when its standard input does, that is with this process, however that ends.
        reader = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, stdout=subprocess.DEVNULL)
        _readers[os.getpid(), self.folder] = (reader, tokens)

    def stop_reading(self) -> None:
        """End the process that reads ahead, if this one has started it; what it has written stays."""
        reader, _ = _readers.pop((os.getpid(), self.folder), (None, 0))
        if reader is not None:
            reader.kill()
            reader.communicate()

    def block(self, index: int) -> Block:
        """Return a block, once it is there, counted without end: where the stream ends, it begins again."""
        stop = (index + 1) * self.context
        if self.parts.tokens < stop and self._wait_for(stop) < stop:
            length = self.length
            if not length:
                raise ValueError(f"data: the stream holds less than one block of {self.context} tokens")
            return self.block(index % length)
        return as_block(self.parts.read(stop - self.context, stop))

    def _wait_for(self, tokens: int) -> int:
        # Wait until so many tokens are there, or the stream has ended; return how many there are.
        began = heard = time.monotonic()
        beat, said = self._beat(), False
        while True:
            whole = self.parts.is_whole  # asked first: parts are written before the end is
            self.parts.refresh()
            if whole or self.parts.tokens >= tokens:
                return self.parts.tokens
            with contextlib.suppress(FileNotFoundError):  # another run on the same corpus may be beginning anew
                failure = storage.read_json(self.parts.folder / FAILURE_NAME)
                raise ValueError(str(failure.get("reason")))
            now = time.monotonic()
            if self._beat() != beat:
                beat, heard = self._beat(), now
            if self._reader_died() or now - heard > _SECONDS_OF_SILENCE:
                raise ValueError(
                    f"{self.folder}: the process that reads the stream is gone; start the run again, it reads on from "
                    f"{self.parts.tokens} tokens"
                )
            if not said and now - began > _SECONDS_BEFORE_WORD:
                said = True
                logger.warning(
                    "training waits for data: tokenizing the stream is slower than training on it. "
                    "`hf-progressive prepare` tokenizes it beforehand"
                )
            time.sleep(_POLL_SECONDS)

    def _beat(self) -> int:
        try:
            return (self.parts.folder / BEAT_NAME).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _reader_died(self) -> bool:
        # Only the process that started it can tell at once.
        reader, _ = _readers.get((os.getpid(), self.folder), (None, 0))
        if reader is None or reader.poll() is None:
            return False
        self.parts.refresh()
        return reader.returncode not in (0, 2)  # done, or the reason is on the disk


@atexit.register
def _stop_readers() -> None:
    for (parent, _), (reader, _) in _readers.items():
        if parent == os.getpid():
            reader.kill()
