"""Preparing a ladder's corpus before the ladder runs, on a machine that need not have an accelerator."""

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_progressive.config import LadderConfig
from hf_progressive.data import Corpus, TokenStream, prepare_corpus
from hf_progressive.data.ahead import write_ahead
from hf_progressive.ladder.external_model import starting_behind
from hf_progressive.ladder.run_folder import make_run_folder
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.storage.full_disk import FullDiskNamed

CORPUS_NAME = "data"
"""The corpus's folder in a run folder."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A prepared corpus, and how long that took."""

    folder: Path
    """The corpus folder, for `data.prepared` of another run."""

    corpus: Corpus
    """The corpus."""

    train_tokens: int
    """Tokens to train on that are there."""

    wanted_tokens: int
    """Tokens from the start of the corpus to where the ladder's last run ends."""

    seconds: float
    """What this call took, 0 or little where the work had been done."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "wanted_tokens": self.wanted_tokens,
            "seconds": self.seconds,
            **self.corpus.summary(),
            "train_tokens": self.train_tokens,
        }

    def describe(self) -> str:
        """Return one line for a person."""
        line = f"{self.train_tokens:,} tokens to train on in {self.folder}, {self.seconds:.0f} s"
        rounds = self.wanted_tokens / self.train_tokens
        return line if rounds <= 1 else f"{line}; the ladder reads them {rounds:.1f} times"


def prepare_ladder(
    config: LadderConfig, output_dir: str | os.PathLike[str], *, num_proc: int | None = None
) -> Preparation:
    """Read, tokenize and pack a ladder's corpus into its run folder, where `run_ladder` finds it.

    Of a streamed corpus, as many tokens are read as the ladder trains on. Killed, and started again, it goes on.
    `num_proc` processes tokenize, one core each; None uses the threads of this one, on all cores. The result is the
    same.
    """
    if num_proc is not None and num_proc < 1:
        raise ValueError(f"num_proc: {num_proc} processes cannot tokenize; use 1 or more, or leave it out")
    started = time.monotonic()
    plan = plan_ladder(config)
    folder = Path(output_dir) / CORPUS_NAME
    data = dataclasses.replace(config.corpus, prepared=None)
    make_run_folder(Path(output_dir))
    with FullDiskNamed(folder):
        corpus = prepare_corpus(data, config.model.context, folder, num_proc=num_proc)
        wanted = starting_behind(plan, corpus).corpus_blocks * corpus.context
        if isinstance(corpus.train, TokenStream):
            write_ahead(folder, wanted, num_proc=num_proc, progress=True)
            corpus.train.parts.refresh()
            tokens = corpus.train.parts.tokens
            if tokens < corpus.context:
                raise ValueError(
                    f"data: the stream holds less than one block of {corpus.context} tokens; give more text"
                )
        else:
            tokens = int(corpus.counts["train_tokens"] or 0)
    seconds = time.monotonic() - started
    return Preparation(folder=folder, corpus=corpus, train_tokens=tokens, wanted_tokens=wanted, seconds=seconds)
