"""Publishing what a ladder finishes while it goes on: never in its way, and never the reason that it stops."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from huggingface_hub import constants

from hf_progressive import __version__
from hf_progressive.config import PublishConfig
from hf_progressive.publishing.publish import publish_family
from hf_progressive.storage import MANIFEST_NAME, read_json, sha256_file, write_json

logger = logging.getLogger(__name__)

PUBLISHED_NAME = "published.json"
"""What a run folder says of its last publication: where it is, and a digest of all that it was made of."""


class FamilyPublisher:
    """Publishes a run's finished rungs, in the background, whenever its records change.

    A context manager whose object is what `run_ladder` takes as `on_record`. Uploads run on a thread of the first
    process, so that the others do not wait for the network; leaving the block waits for the last of them. What cannot
    be published is said in one line, with the command that finishes it later, and training goes on.
    """

    def __init__(self, config: PublishConfig) -> None:
        self._options = dataclasses.asdict(config)
        self._pattern = self._options.pop("repo_id")
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True)

    def __call__(self, run_dir: str | os.PathLike[str]) -> None:
        """Publish what the run has finished, once what is being published now is through."""
        if self._last is not None:
            self._last.cancel()  # it has not begun, and what follows covers it
        self._last = self._executor.submit(self._publish, Path(run_dir))

    def catch_up(self, run_dir: str | os.PathLike[str]) -> None:
        """Publish a run that had been finished before, so that nothing was recorded of it now, unless it was then.

        What the Hub holds is not looked at where nothing has changed here since it was all published.
        """
        if self._last is None and not self._is_published(Path(run_dir)):
            self(run_dir)

    def _is_published(self, run_dir: Path) -> bool:
        told = run_dir / PUBLISHED_NAME
        with contextlib.suppress(OSError, ValueError):
            if read_json(told).get("sha256") == self._digest(run_dir):
                logger.info("published before, as %s says, and nothing has changed here; the Hub is not asked", told)
                return True
        return False

    # Of all that a publication is made of; every file of a rung is in its manifest.
    def _digest(self, run_dir: Path) -> str:
        files = (run_dir / "ladder.json", *run_dir.glob(f"*/final/{MANIFEST_NAME}"))
        held = {file.relative_to(run_dir).as_posix(): sha256_file(file) for file in files}
        made_of = (__version__, constants.ENDPOINT, self._pattern, self._options, held)
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    def _publish(self, run_dir: Path) -> None:
        told = run_dir / PUBLISHED_NAME
        try:
            digest = self._digest(run_dir)  # before, since a record may follow meanwhile
            told.unlink(missing_ok=True)  # a publication that fails halfway may have replaced some of the last
            addresses = publish_family(run_dir, self._pattern, **self._options)
        except (OSError, ValueError) as error:
            remedy = f"hf-progressive publish {run_dir} --repo-id '{self._pattern}'"
            logger.warning("not published: %s. Training is not affected; finish it with: %s", error, remedy)
        else:
            logger.info("published: %s", ", ".join(addresses))
            with contextlib.suppress(OSError):  # without it, the next start asks the Hub
                write_json(told, {"addresses": addresses, "sha256": digest})
