"""How a trainer saves: a checkpoint stands under its own name whole, or not at all. And how it reads weights back."""

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_progressive.growth.grow import OPTIMIZER_NAME
from hf_progressive.growth.reader import INDEX_NAME, WEIGHTS_NAME, CheckpointReader
from hf_progressive.hub.names import LICENCE_FILES
from hf_progressive.training.checkpoints import link_penalty, rotate, written_whole
from hf_progressive.training.moments import whole_optimizer_state

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # any trainer may stand behind it


class WholeSaves(_Trainer):
    """The part of `ProgressiveMixin` that saves: everything is written below `.saving`, then moved into place.

    It also reads weights whose files hold them under other names than the model has, such as those of single experts.
    Trainer itself (Transformers 5.23) warns of missing keys there, and trains on with what the model held before.
    """

    begun_from: str | os.PathLike[str] | None = None
    """A checkpoint whose licences and notices go along with what `save_pretrained_whole` saves."""

    _save_root: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        root: str = self._save_root or super()._get_output_dir(trial)
        return root

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._require_finite()
        run_dir = Path(self._get_output_dir(trial))
        target = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with written_whole(target, writes=self.args.should_save) as (staged, known):
            self._save_root = str(staged.parent)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._save_root = None
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(target)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / "trainer_state.json"))
            if self.penalty is not None and self.args.should_save and self._saves_state:
                known.update(link_penalty(Path(self.args.output_dir), staged, self.weighted_penalty))
            if self.args.should_save and self._saves_state:
                self._write_settings(staged)
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(target))
        if self.args.should_save:
            rotate(target, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_renamed(resume_from_checkpoint, self.model if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_renamed(self.state.best_model_checkpoint, self.model):
            super()._load_best_model()

    # Whether it was a checkpoint of that kind; engines that divide a model have files of their own.
    def _load_renamed(self, folder: Any, model: nn.Module) -> bool:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            return False
        if not any((Path(folder) / name).is_file() for name in (WEIGHTS_NAME, INDEX_NAME)):
            return False
        if CheckpointReader(folder).specs.keys() <= model.state_dict().keys():
            return False
        stored = type(model).from_pretrained(folder, dtype=model.dtype)
        model.load_state_dict(stored.state_dict())
        return True

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Wait until the checkpoint stands at its own name."""

    def save_pretrained_whole(self, folder: str | os.PathLike[str], *, moments: bool = False) -> None:
        """Save the model and tokenizer as a stock checkpoint, complete or not at all; every process must call it.

        A checkpoint that stands there is replaced. With `moments`, the optimizer's state is there too, whole; and so
        are the licences and notices of the folder `begun_from`.
        """
        started = time.monotonic()
        self._require_finite()
        optimizer_state = whole_optimizer_state(self.bare_model(), self.optimizer) if moments else None
        with written_whole(Path(folder), writes=self.args.should_save) as (staged, _):
            self.save_model(str(staged), _internal_call=True)
            if self.args.should_save:
                (staged / "training_args.bin").unlink(missing_ok=True)
                for path in _licences(self.begun_from):
                    shutil.copyfile(path, staged / path.name)
                if optimizer_state is not None:
                    torch.save(optimizer_state, staged / OPTIMIZER_NAME)
        if self.meter is not None:
            self.meter.saving(time.monotonic() - started)


def _licences(folder: str | os.PathLike[str] | None) -> list[Path]:
    found = [] if folder is None else [path for pattern in LICENCE_FILES for path in Path(folder).glob(pattern)]
    return [path for path in found if path.is_file()]
