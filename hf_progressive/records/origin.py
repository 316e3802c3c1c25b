"""A model trained elsewhere that a ladder begins with: a published rung, a rung's folder, or any other checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_progressive.growth.source import GrowthSource
from hf_progressive.growth.stock_model import TORCH_ATTENTION, TORCH_EXPERTS
from hf_progressive.growth.unmerged import refuse_adapter
from hf_progressive.hub.fetch import locate_files
from hf_progressive.hub.names import COMPANIONS, CONFIG_NAME, PUBLISHED, RECORD_NAME, RUNG_FILES, is_repo_id
from hf_progressive.records.rung import OriginRecord, RungRecord
from hf_progressive.storage import check_manifest, require_own_file


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A model trained elsewhere, on this machine."""

    name: str
    """Who it is, in records that others read: its Hub name, or that of the rung or folder; never a path."""

    folder: Path
    """Where its files are. They belong to somebody else and are only read."""

    commit: str | None
    """The commit, for one from the Hub."""

    record: RungRecord | None
    """Its `rung.json`; None for a checkpoint that no ladder trained, of which nothing is known."""

    def __str__(self) -> str:
        return self.name if self.commit is None else f"{self.name} at {self.commit[:12]}"

    def describe(self, rung: str = "") -> str:
        """Return what it is and what went into it: the rest of a sentence whose subject is the rung of that name."""
        if self.record is None or not self.flops:
            history = "what went into it is not recorded, so that its FLOPs count as 0"
        else:
            read = f"{self.record.tokens:,} tokens" if self.record.tokens else "tokens not recorded"
            history = f"{read} and {self.flops:.3g} FLOPs went into it, as its record says"
            if not self.is_complete:
                history += ", those of its first ancestor unknown"
        who = "" if str(self) == rung else f"{self}, which is "
        return f"{who}taken over and not trained; {history}"

    def to_record(self) -> OriginRecord:
        """Return who it is and what went into it."""
        known = self.record
        return OriginRecord(
            name=self.name,
            commit=self.commit,
            rung=known.name if known else None,
            tokens=known.tokens if known else 0,
            bits_per_byte=known.bits_per_byte if known else None,
            flops=self.flops,
            is_complete=self.is_complete,
        )

    @property
    def flops(self) -> float:
        """All FLOPs that went into its weights, as far as they are recorded."""
        return 0.0 if self.record is None else self.record.flops.lineage

    @property
    def is_complete(self) -> bool:
        """Whether `flops` is all that went into it, its ancestors included."""
        return self.record is not None and self.record.lineage_complete

    @property
    def checkpoint(self) -> GrowthSource:
        """The same as a checkpoint to be read."""
        return GrowthSource(name=self.name, folder=self.folder, revision=self.commit)

    def read_config(self) -> Any:
        """Return its config, in which attention and experts that may not be at hand are left to torch."""
        config = self.checkpoint.read_config()
        if config._attn_implementation not in TORCH_ATTENTION:
            config._attn_implementation = None
        if config._experts_implementation not in TORCH_EXPERTS:
            config._experts_implementation = None
        return config

    def read_tokenizer(self) -> Any:
        """Load its tokenizer; None where it has none."""
        has_one = any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        from hf_progressive.data.tokenizer import read_tokenizer

        return read_tokenizer(self.folder) if has_one else None

    def files(self) -> list[str]:
        """Return the names of what a ladder takes over: what a rung publishes, and the tokenizer's files.

        Raises:
            ValueError: One is a link that leads out of the folder.
        """
        found = {path for pattern in (*RUNG_FILES, *COMPANIONS) for path in self.folder.glob(pattern)}
        for path in sorted(found):
            require_own_file(path, self.folder)
        return sorted(path.relative_to(self.folder).as_posix() for path in found if path.is_file())


def locate_origin(source: str, revision: str | None = None, *, weights: bool = True) -> Origin:
    """Find a model trained elsewhere: in a folder, which goes first, in the Hub's cache, or on the Hub.

    Without `weights`, only what tells sizes, tokenizer and history is fetched, and nothing checked.

    Raises:
        FileNotFoundError: It is neither a folder nor a repository within reach, or has no such revision.
        ValueError: A Hub name is not pinned, a folder is, a file is damaged, or the record is of another version.
    """
    if revision is None and is_repo_id(source) and not Path(source).is_dir():
        raise ValueError(
            f"{source}: no such folder here, and a source on the Hub must be pinned; give a tag or a commit"
        )
    wanted = PUBLISHED if weights else (CONFIG_NAME, RECORD_NAME)
    folder, commit = locate_files(source, (*wanted, *COMPANIONS), revision=revision)
    if not (folder / CONFIG_NAME).is_file():
        refuse_adapter(folder)
        raise FileNotFoundError(f"{source}: holds no {CONFIG_NAME}; give a rung's final/ folder or another checkpoint")
    path = folder / RECORD_NAME
    record = RungRecord.read(path) if path.is_file() else None
    if weights and record is not None:
        check_manifest(folder)
    return Origin(name=source if commit else _local_name(folder, record), folder=folder, commit=commit, record=record)


def _local_name(folder: Path, record: RungRecord | None) -> str:
    if record is None:
        return folder.resolve().name
    return record.origin.name if record.origin else record.name
