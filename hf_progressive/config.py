"""The configuration of a ladder: frozen dataclasses, read from strict YAML.

Every field is documented once, in the text under it, with its unit. Unknown keys, wrong types and values out of range
raise a `ValueError` of one line that names the dotted path. This module imports neither torch nor transformers.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from hf_progressive import strict_yaml

_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value is None or value > 0, f"{name}: {value} is not positive")


def _require_fraction(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0.0 <= value <= 1.0, f"{name}: {value} is not between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where the tokenizer comes from."""

    name: str | None = None
    """A local folder or a Hub name to load it from; None trains a byte-level BPE on the corpus."""

    vocab_size: int = 1024
    """Entries of a tokenizer to be trained, the 256 bytes and the end-of-text token included."""

    training_bytes: int = 20_000_000
    """UTF-8 bytes of the corpus, from its start, that a tokenizer to be trained reads at the most."""

    def __post_init__(self) -> None:
        _require(
            self.vocab_size > 256, f"vocab_size: {self.vocab_size} leaves no room for the 256 bytes; use 257 or more"
        )
        _require_positive(self, "training_bytes")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The corpus: what `datasets.load_dataset` reads, or the embedded default."""

    source: str = "stdlib"
    """`stdlib` (the source text of this Python's standard library), a builder of `datasets` (`text`, `json`,
    `parquet`) together with `files`, or the name of a Hub dataset."""

    files: tuple[str, ...] = ()
    """Local files, folders or glob patterns for the builders `text`, `json` and `parquet`. A text file is cut, at line
    ends, into documents of 16,384 characters; a row of the others is a document."""

    validation_files: tuple[str, ...] = ()
    """Files whose documents are the validation part; empty holds out a part of the corpus by document hash."""

    name: str | None = None
    """The configuration (subset) of a Hub dataset."""

    split: str = "train"
    """The split of a Hub dataset."""

    revision: str | None = None
    """The branch, tag or commit of a Hub dataset."""

    text_column: str = "text"
    """The column that holds a document."""

    streaming: bool = False
    """Read the corpus as a stream, tokenizing while training, instead of tokenizing it all beforehand."""

    max_documents: int | None = None
    """Read no more documents than this from the corpus, from its start."""

    validation_fraction: float = 0.02
    """Share of documents held out for validation, chosen by the hash of their text."""

    max_validation_tokens: int = 131_072
    """Validation tokens at the most; the first documents of the part are kept."""

    shuffle_seed: int | None = 0
    """Seed of the one order of documents, and of the blocks packed from them, that every run reads; None keeps the
    source's own. A stream keeps it anyway: shuffle a corpus before streaming it."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Where the tokenizer comes from."""

    def __post_init__(self) -> None:
        _require(0 < self.validation_fraction < 1, f"validation_fraction: {self.validation_fraction} is not in (0, 1)")
        _require_positive(self, "max_documents", "max_validation_tokens")
        local = self.source in ("text", "json", "parquet")
        _require(not local or bool(self.files), f"files: the source {self.source!r} needs the files to read")
        _require(local or not self.files, f"files: only text, json and parquet read files, not {self.source!r}")
        _require(
            not self.streaming or self.source != "stdlib", "streaming: the stdlib corpus is small, it is not streamed"
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every rung's model shares."""

    family: str = "gpt2"
    """The `model_type` of the Transformers configuration."""

    context: int = 256
    """Tokens of context, which is also the length of a training block."""

    aspect_ratio: int = 64
    """Width per layer, for rungs sized by their depth alone."""

    head_dim: int = 64
    """Width of an attention head, for rungs sized by their depth alone."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields of the family's configuration, the same on every rung (`resid_pdrop: 0.0`)."""

    def __post_init__(self) -> None:
        _require_positive(self, "context", "aspect_ratio", "head_dim")
        _require(self.context >= 8, f"context: {self.context} is below 8 tokens")


@dataclass(frozen=True, kw_only=True)
class RungConfig:
    """One model of the ladder: a depth on the dial, or explicit configuration fields."""

    name: str
    """The rung's name, which is its folder's too; `d11` where the depth alone is given."""

    depth: int | None = None
    """Layers, from which everything else follows; None where `fields` say it."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the family's configuration (`n_layer: 5, n_embd: 96, n_head: 6`)."""

    def __post_init__(self) -> None:
        _require(
            _NAME_PATTERN.fullmatch(self.name) is not None,
            f"name: {self.name!r} cannot name a folder; use letters, digits, '.', '_' and '-'",
        )
        _require_positive(self, "depth")
        _require((self.depth is None) != (not self.fields), f"{self.name}: give either a depth or explicit fields")

    @classmethod
    def from_yaml(cls, value: Any, path: str) -> "RungConfig":
        """Read a rung: `d11`, `{depth: 11, name: …}` or `{name: …, n_layer: …, n_embd: …}`.

        Args:
            value: The YAML value.
            path: Its dotted path, for error messages.

        Returns:
            The rung.

        Raises:
            ValueError: The value has none of these forms.
        """
        if isinstance(value, str):
            match = re.fullmatch(r"d(\d+)", value)
            _require(
                match is not None, f"{path}: {value!r} is no depth; write d11, or a mapping with a name and fields"
            )
            assert match is not None
            return cls(name=value, depth=int(match[1]))
        _require(isinstance(value, Mapping), f"{path}: expected d11 or a mapping, got {value!r}")
        fields = {str(key): item for key, item in value.items()}
        depth = strict_yaml.convert(int | None, fields.pop("depth", None), f"{path}.depth")
        name = strict_yaml.convert(str | None, fields.pop("name", None), f"{path}.name")
        _require(name is not None or depth is not None, f"{path}: a rung with explicit fields needs a name")
        try:
            return cls(name=name or f"d{depth}", depth=depth, fields=fields)
        except ValueError as error:
            raise ValueError(f"{path}.{error}") from None


@dataclass(frozen=True, kw_only=True)
class GrowthConfig:
    """How a rung is made from its parent."""

    method: str = "exact"
    """A growth method; `exact` keeps the parent's function."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of `plan_growth`, by name."""

    parent: Literal["final", "stable"] = "final"
    """Grow from the parent after its warm-down, or from the checkpoint before it."""

    max_relative_logit_difference: float = 1e-5
    """Largest |Δlogit| over the logit scale that a function-preserving growth may show before the ladder stops."""


@dataclass(frozen=True, kw_only=True)
class FisherConfig:
    """How the parent's diagonal Fisher information is estimated."""

    kind: Literal["empirical", "true"] = "empirical"
    """Labels from the data, or sampled from the model."""

    sequences: int = 128
    """Blocks of the parent's own training data to estimate it from."""

    batch_size: int = 8
    """Blocks per forward and backward pass; changes the time and not the result."""

    def __post_init__(self) -> None:
        _require_positive(self, "sequences", "batch_size")


@dataclass(frozen=True, kw_only=True)
class SubspaceConfig:
    """How the parent's output subspace of each weight matrix is learned."""

    source: Literal["weights", "gradients", "activations"] = "weights"
    """What the subspace spans: the matrix's singular vectors, output gradients or output activations."""

    energy: float = 0.95
    """Share of the squared singular values (or of the trace) that the basis keeps."""

    sequences: int = 64
    """Blocks for the sources `gradients` and `activations`."""

    def __post_init__(self) -> None:
        _require(0 < self.energy <= 1, f"energy: {self.energy} is not in (0, 1]")
        _require_positive(self, "sequences")


@dataclass(frozen=True, kw_only=True)
class PhiConfig:
    """The inheritance penalty Φ of grown rungs."""

    ewc_lambda: float = 0.0
    """λ, weight of the Fisher-weighted squared distance from the parent; 0 leaves the term out."""

    gamma: float = 0.0
    """γ, weight of the squared distance outside the parent's output subspace; 0 leaves the term out."""

    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Course of λ and γ over training."""

    until: float = 0.5
    """Share of the rung's steps after which a linear or cosine schedule has reached 0."""

    fisher: FisherConfig = field(default_factory=FisherConfig)
    """How the Fisher information is estimated."""

    subspace: SubspaceConfig = field(default_factory=SubspaceConfig)
    """How the subspace is learned."""

    def __post_init__(self) -> None:
        for name in ("ewc_lambda", "gamma"):
            value = getattr(self, name)
            _require(0 <= value < float("inf"), f"{name}: {value} is not a finite number of 0 or more")
        _require(0 < self.until <= 1, f"until: {self.until} is not in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How every rung, and every cold twin, trains."""

    tokens_per_parameter: float = 8.0
    """Tokens of a cold run's full budget, per parameter."""

    budget_parameters: Literal["scaling", "non_embedding", "total"] = "scaling"
    """Which parameters the budget counts: transformer and output head, transformer alone, or all."""

    inherited_fraction: float = 0.65
    """Share of the cold budget that a grown rung trains for."""

    batch_tokens: int = 4096
    """Tokens per optimizer step over all processes and accumulated micro-batches."""

    micro_batch_size: int = 16
    """Blocks per forward pass and process, at the most."""

    learning_rate: float = 2e-3
    """Peak learning rate."""

    inherited_learning_rate: float | None = None
    """Peak learning rate of grown rungs; None takes `learning_rate`."""

    warmup_fraction: float = 0.02
    """Share of the steps over which the learning rate rises to its peak."""

    warmdown_fraction: float = 0.5
    """Share of the steps over which the learning rate falls linearly, at the end."""

    final_lr_ratio: float = 0.0
    """Learning rate at the last step over the peak."""

    weight_decay: float = 0.1
    """AdamW's decoupled weight decay, on matrices."""

    adam_beta1: float = 0.9
    """AdamW's decay rate of the first moment."""

    adam_beta2: float = 0.95
    """AdamW's decay rate of the second moment."""

    max_grad_norm: float = 1.0
    """Norm to which the gradient is clipped."""

    evaluations: int = 16
    """Validation points along a run, the last step included."""

    checkpoints: int = 4
    """Checkpoints for resuming along a run, the last step included."""

    keep_stable: bool = False
    """Keep the weights from before the warm-down beside the final ones."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Further `TrainingArguments` (`bf16: true`, `report_to: [tensorboard]`, `gradient_checkpointing: true`)."""

    def __post_init__(self) -> None:
        _require_positive(
            self, "tokens_per_parameter", "batch_tokens", "micro_batch_size", "evaluations", "checkpoints"
        )
        _require_positive(self, "learning_rate", "inherited_learning_rate")
        _require_fraction(self, "warmup_fraction", "warmdown_fraction", "final_lr_ratio")
        _require(0 < self.inherited_fraction <= 4, f"inherited_fraction: {self.inherited_fraction} is not in (0, 4]")
        total = self.warmup_fraction + self.warmdown_fraction
        _require(
            total <= 1, f"warmdown_fraction: warm-up and warm-down together are {total} of the steps, more than 1"
        )


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """A ladder: rungs from the smallest to the largest, and everything that decides their weights."""

    name: str = "ladder"
    """The ladder's name, in reports and cards."""

    seed: int = 0
    """Seed of weights, growth and data loading."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """What every rung's model shares."""

    rungs: tuple[RungConfig, ...]
    """The models, each grown from the one before."""

    cold: Literal["all", "none"] | tuple[str, ...] = "all"
    """Grown rungs that are trained from nothing as well, for comparison: all, none, or a list of names."""

    data: DataConfig = field(default_factory=DataConfig)
    """The corpus."""

    growth: GrowthConfig = field(default_factory=GrowthConfig)
    """How a rung is made from its parent."""

    phi: PhiConfig = field(default_factory=PhiConfig)
    """The inheritance penalty of grown rungs."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How every rung trains."""

    def __post_init__(self) -> None:
        _require(len(self.rungs) > 0, "rungs: the list is empty; name at least one rung")
        names = [rung.name for rung in self.rungs]
        for name in names:
            _require(names.count(name) == 1, f"rungs: the name {name!r} is given to {names.count(name)} rungs")
        if not isinstance(self.cold, str):
            for name in self.cold:
                _require(name in names[1:], f"cold: {name!r} is no grown rung; {strict_yaml.nearest(name, names[1:])}")
        blocks, context = self.training.batch_tokens, self.model.context
        _require(
            blocks % context == 0,
            f"training.batch_tokens: {blocks} is not a multiple of the context, {context} tokens",
        )

    def trains_cold(self, name: str) -> bool:
        """Tell whether a grown rung has a cold twin.

        Args:
            name: The rung's name.

        Returns:
            False for the first rung, which is cold itself.
        """
        if name == self.rungs[0].name:
            return False
        return self.cold == "all" or (self.cold != "none" and name in self.cold)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, such that reading them back gives an equal one.

        Returns:
            Nested dictionaries and lists.
        """
        value = _plain(self)
        value["rungs"] = [
            {"name": rung.name, **({"depth": rung.depth} if rung.depth is not None else rung.fields)}
            for rung in self.rungs
        ]
        assert isinstance(value, dict)
        return value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def find_config(path: str | os.PathLike[str]) -> Path:
    """Return the path of a configuration: a file, or the name of one that ships with the package.

    Args:
        path: A path, or a name such as `ladder_small`.

    Returns:
        The path of the YAML file.

    Raises:
        FileNotFoundError: Neither exists.
    """
    given = Path(path)
    if given.is_file():
        return given
    package = Path(str(resources.files("hf_progressive")))
    folders = (package / "configs", package.parent / "configs")  # an installed package, a checkout
    shipped = {file.stem: file for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")}
    if given.name == str(path) and given.stem in shipped:
        return shipped[given.stem]
    known = f"; configurations that ship with the package: {', '.join(sorted(shipped))}" if shipped else ""
    raise FileNotFoundError(f"{path}: no such file{known}")


def load_ladder_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> LadderConfig:
    """Read a ladder's YAML file.

    Args:
        path: The file, or the name of a configuration that ships with the package.
        overrides: Dotted overrides, `training.learning_rate=1e-3`, whose values are YAML.

    Returns:
        The checked configuration.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A key is unknown, or a value has the wrong type or range; the message names its dotted path.
    """
    file = find_config(path)
    mapping = strict_yaml.apply_overrides(strict_yaml.read_yaml(file), overrides)
    try:
        return strict_yaml.build(LadderConfig, mapping)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
