"""What holds a run besides the penalty's tensors: kept in each checkpoint, compared when a run goes on from it."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from hf_progressive.storage import read_json, write_json
from hf_progressive.training.parent_divergence import ParentDivergence
from hf_progressive.training.phi_arguments import PhiArguments

logger = logging.getLogger(__name__)

SETTINGS_NAME = "phi_settings.json"
"""Of a checkpoint that was trained with a penalty or a divergence."""


class ResumedSettings(PhiArguments):
    """The part of `ProgressiveMixin` that keeps Φ's schedule and the divergence with a checkpoint."""

    divergence: ParentDivergence | None

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        if self.penalty is not None:
            settings |= {"phi_schedule": self.phi_schedule, "phi_until": self.phi_until}
        if (held := self.divergence) is not None:
            blocks = held.blocks.detach().cpu().long().contiguous().numpy()
            digest = hashlib.sha256(blocks.tobytes()).hexdigest()
            settings["divergence"] = {
                "weight": held.weight,
                "every": held.every,
                "batch_size": held.batch_size,
                "blocks": {"shape": list(blocks.shape), "sha256": digest},
            }
        return settings

    def _write_settings(self, folder: Path) -> None:
        if settings := self._settings():
            write_json(folder / SETTINGS_NAME, settings)

    def _compare_settings(self, checkpoint: Path) -> None:
        """Warn where the run is held otherwise than the checkpoint was; raise where a divergence is gone.

        A checkpoint of a time when nothing was written says nothing.
        """
        if not (checkpoint / SETTINGS_NAME).is_file():
            return
        before, now = read_json(checkpoint / SETTINGS_NAME), self._settings()
        if "divergence" in before and "divergence" not in now:
            raise ValueError(
                f"{checkpoint} was trained with a ParentDivergence; pass divergence=, or branches=True to train() to"
                " go on without it"
            )
        if "divergence" in now and "divergence" not in before:
            logger.warning("%s was trained without a divergence; the run goes on with one", checkpoint)
        theirs, ours = ({**each, **each.get("divergence", {})} for each in (before, now))
        for name in ("phi_schedule", "phi_until", "weight", "every", "batch_size"):
            if name in theirs and name in ours and theirs[name] != ours[name]:
                told = (checkpoint, name, theirs[name], ours[name])
                logger.warning("%s was trained with %s=%s; the run goes on with %s", *told)
        if "blocks" in theirs and "blocks" in ours and theirs["blocks"] != ours["blocks"]:
            logger.warning("%s was held to its parent on other blocks; the run goes on with those given", checkpoint)
