"""The mean of a run's checkpoints: a finished model without a decay.

Averaging the last weights of a run at a constant rate does most of what a decay does, for no training. Sources:
WSM (arXiv 2507.17634), which puts averages in the place of decays; PMA (arXiv 2505.12082).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hf_progressive.growth.grow import OPTIMIZER_NAME
from hf_progressive.growth.reader import CheckpointReader
from hf_progressive.growth.writer import CheckpointWriter
from hf_progressive.storage import MANIFEST_NAME, atomic_folder


def average_checkpoints(folders: Sequence[Path], output: Path) -> None:
    """Write the mean of checkpoints, each entry's in float32, with the last one's configuration and tokenizer.

    Tensor by tensor, so that memory holds two of them and not a model. What stood there is replaced.

    Raises:
        FileNotFoundError: A checkpoint, or a part of it, is missing.
        ValueError: The checkpoints differ in their tensors' names or shapes, or a file is damaged.
    """
    readers = [CheckpointReader(folder) for folder in folders]
    last = readers[-1]
    for reader in readers:
        if reader.specs != last.specs:
            raise ValueError(f"{reader.folder} and {last.folder} hold other tensors; only equal models have a mean")
    digests: dict[str, str | None] = {}
    with atomic_folder(output, overwrite=True, sha256=digests) as temporary:
        for path in last.folder.iterdir():
            if path.is_file() and path.name not in (*last.files, MANIFEST_NAME, OPTIMIZER_NAME):
                shutil.copyfile(path, temporary / path.name)
        writer = CheckpointWriter(temporary, last.specs)
        with writer:
            for name in writer.order:
                writer.write(name, _mean(readers, name))
        digests.update(writer.sha256)


def _mean(readers: Sequence[CheckpointReader], name: str) -> Tensor:
    first = readers[0].read(name)
    total = first.to(torch.float32)
    for reader in readers[1:]:
        total = total + reader.read(name).to(torch.float32)
    return (total / len(readers)).to(first.dtype)
