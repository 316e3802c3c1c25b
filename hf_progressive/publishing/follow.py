"""Publishing what a ladder finishes while it goes on: never in its way, and never the reason that it stops."""

import dataclasses
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from hf_progressive.config import PublishConfig
from hf_progressive.publishing.publish import publish_family

logger = logging.getLogger(__name__)


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
        """Publish a run that had been finished before, so that nothing was recorded of it now."""
        if self._last is None:
            self(run_dir)

    def _publish(self, run_dir: Path) -> None:
        try:
            addresses = publish_family(run_dir, self._pattern, **self._options)
        except (OSError, ValueError) as error:
            remedy = f"hf-progressive publish {run_dir} --repo-id '{self._pattern}'"
            logger.warning("not published: %s. Training is not affected; finish it with: %s", error, remedy)
        else:
            logger.info("published: %s", ", ".join(addresses))
