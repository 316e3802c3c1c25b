"""A ladder, read from strict YAML."""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from hf_progressive.config import strict_yaml
from hf_progressive.config.after_training import CoreConfig, PublishConfig
from hf_progressive.config.checks import require, require_distinct, require_folder_name, require_in_range
from hf_progressive.config.credentials import refuse_credentials
from hf_progressive.config.data import DataConfig
from hf_progressive.config.model import GrowthConfig, ModelConfig, RungConfig
from hf_progressive.config.phi import PhiConfig, require_weight_in_ladder
from hf_progressive.config.ranges import Seed, class_of
from hf_progressive.config.training import TrainingConfig
from hf_progressive.config.trunk import TrunkConfig

_OF_THE_RUN = {
    "data",
    "plots",
    "ladder.yaml",
    "ladder.json",
    "progress.json",
    "published.json",
    "report.html",
    "report.md",
}
"""What stands beside the rungs in a run folder."""

_NO_SHARES = "without effect in a trunk, whose rungs train up to their until; leave it out"
_NO_PARENT = "without effect in a trunk, which always grows from the weights before a decay; leave it out"

_SectionT = TypeVar("_SectionT", TrainingConfig, GrowthConfig, PhiConfig)


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """A ladder: rungs from the smallest to the largest, and everything that decides their weights."""

    name: str = "ladder"
    """The ladder's name, in reports and cards, which is its folder's below runs/."""

    seed: Seed = 0
    """Seed of weights, growth and data loading."""

    schedule: Literal["chain", "trunk"] = "chain"
    """How rungs follow one another: each from the finished one before it, or all on one training run at a constant
    rate, the trunk, from which the smaller rungs' models branch off."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """What every rung's model shares."""

    rungs: tuple[RungConfig, ...]
    """The models, each grown from the one before."""

    cold: Literal["all", "none"] | tuple[str, ...] = "all"
    """Grown rungs that are trained from scratch as well, for comparison: all, none, or a list of names."""

    data: DataConfig = field(default_factory=DataConfig)
    """The corpus."""

    growth: GrowthConfig = field(default_factory=GrowthConfig)
    """How a rung is made from its parent."""

    phi: PhiConfig = field(default_factory=PhiConfig)
    """The inheritance penalty of grown rungs."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How every rung trains."""

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    """How a trunk grows and branches; without effect, and refused, in a chain."""

    core: CoreConfig | None = None
    """Evaluate every rung on CORE; None does not."""

    publish: PublishConfig | None = None
    """Publish every rung on the Hub as it is finished; None does not."""

    def __post_init__(self) -> None:
        refuse_credentials(self.to_dict())
        require_in_range(self)
        require_folder_name(self.name)
        require(len(self.rungs) > 0, "rungs: the list is empty; name at least one rung")
        problems = list(dict.fromkeys(self._problems()))  # rungs share what the ladder says
        require(not problems, "; ".join(problems))
        object.__setattr__(self, "rungs", tuple(map(self._as_read, self.rungs)))

    def _as_read(self, rung: RungConfig) -> RungConfig:
        # With its sections' values as they were read: 5e-3, which YAML takes for a text, is the number that it means.
        of_rung = {"training": self.training_of, "growth": self.growth_of, "phi": self.phi_of}
        sections = {key: getattr(rung, key) for key in of_rung if getattr(rung, key)}
        read: dict[str, Any] = {key: _same_keys(own, plain(of_rung[key](rung.name))) for key, own in sections.items()}
        return dataclasses.replace(rung, **read)

    def _problems(self) -> Iterator[str]:
        names = [rung.name for rung in self.rungs]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                yield f"rungs: the name {name!r} is given to {names.count(name)} rungs"
        for index, name in enumerate(names):
            if name in _OF_THE_RUN:
                yield f"rungs.{index}.name: {name!r} is what the run itself writes beside its rungs; choose another"
        if self.rungs[0].family not in (None, self.model.family):
            yield f"rungs.0.family: of the first rung it is model.family, {self.model.family!r}; change that instead"
        for rung in self.rungs[1:]:
            if rung.source is not None:
                yield f"rungs: {rung.name} has a source, but only the first rung can be taken over"
        if self.rungs[0].source is not None and self.growth.parent != "final":
            yield (
                f"growth.parent: {self.growth.parent!r} needs parents trained here, but {self.rungs[0].name} has a"
                f" source; take 'final'"
            )
        if not isinstance(self.cold, str):
            require_distinct("cold", self.cold)
        for name in () if isinstance(self.cold, str) else self.cold:
            if name not in names[1:]:
                yield f"cold: {name!r} is no grown rung; {strict_yaml.nearest(name, names[1:])}"
        yield from self._trunk_problems() if self.schedule == "trunk" else self._chain_problems()
        for index, rung in enumerate(self.rungs):
            try:
                blocks, context = self.training_of(rung.name).batch_tokens, self.model.context
                self.growth_of(rung.name)
                self.phi_of(rung.name)
            except ValueError as error:
                yield str(error)
                continue
            if index == 1 and self.rungs[0].source is not None and rung.growth.get("parent", "final") != "final":
                yield f"rungs.1.growth.parent: {rung.growth['parent']!r} needs a parent trained here; take 'final'"
            where = f"rungs.{index}.training" if "batch_tokens" in rung.training else "training"
            if blocks % context:
                yield f"{where}.batch_tokens: {blocks} is not a multiple of the context, {context} tokens"
            if index == 0 and (rung.growth or rung.phi):
                yield f"rungs.0: {rung.name} grows from nothing; leave its growth and phi out"

    def _chain_problems(self) -> Iterator[str]:
        if given := [f"rungs.{index}.until" for index, rung in enumerate(self.rungs) if rung.until is not None]:
            yield f"{', '.join(given)}: only a trunk's rungs have one; set schedule: trunk, or leave it out"
        if self.trunk != TrunkConfig():
            yield "trunk: without effect in a chain; set schedule: trunk, or leave it out"

    def _trunk_problems(self) -> Iterator[str]:
        if self.rungs[0].source is not None:
            yield f"rungs: a trunk trains its first rung itself; leave out the source of {self.rungs[0].name}"
        before = 0.0
        if missing := [f"rungs.{index}.until" for index, rung in enumerate(self.rungs[:-1]) if rung.until is None]:
            yield f"{', '.join(missing)}: is missing; after which share of the last rung's tokens does it grow?"
        for index, rung in enumerate(self.rungs[:-1]):
            if rung.until is None:
                continue
            if rung.until <= before:
                where = f"rungs.{index}.until"
                yield f"{where}: {rung.until:g} does not rise above {before:g}, the rung's before; give a larger share"
            before = rung.until
        yield from self._without_effect_in_a_trunk()
        last = self.rungs[-1]
        if last.until not in (None, 1):
            yield f"rungs.{len(self.rungs) - 1}.until: {last.name} is the last and goes on to the end; leave it out"
        try:
            begins = 1 - self.training_of(last.name).decay_fraction
        except ValueError:
            return  # reported with the rung
        if before > begins + 1e-9:
            yield (
                f"rungs.{len(self.rungs) - 2}.until: {before:g} lies in the last rung's decay, which begins at"
                f" {begins:g}; grow by then, or lower training.decay_fraction"
            )

    def _without_effect_in_a_trunk(self) -> Iterator[str]:
        if self.training.inherited_fraction != TrainingConfig().inherited_fraction:
            yield f"training.inherited_fraction: {_NO_SHARES}"
        if self.growth.parent != GrowthConfig().parent:
            yield f"growth.parent: {_NO_PARENT}"
        for index, rung in enumerate(self.rungs):
            if "inherited_fraction" in rung.training:
                yield f"rungs.{index}.training.inherited_fraction: {_NO_SHARES}"
            if "decay_fraction" in rung.training and rung is not self.rungs[-1]:
                yield (
                    f"rungs.{index}.training.decay_fraction: without effect on the trunk, which decays in its last"
                    " rung alone; a member's decay is trunk.member_decay_fraction; leave it out"
                )
            if "parent" in rung.growth:
                yield f"rungs.{index}.growth.parent: {_NO_PARENT}"

    def trains_baseline(self, name: str) -> bool:
        """Tell whether a rung has a baseline; the first, which is cold itself, has none."""
        if name == self.rungs[0].name:
            return False
        return self.cold == "all" or (self.cold != "none" and name in self.cold)

    def training_of(self, name: str) -> TrainingConfig:
        """Return how a rung, and its baseline, trains: the ladder's section with the rung's own keys in it."""
        return self._section(self.training, "training", name)

    def growth_of(self, name: str) -> GrowthConfig:
        """Return how a rung is made from its parent."""
        return self._section(self.growth, "growth", name)

    def phi_of(self, name: str) -> PhiConfig:
        """Return a rung's penalty."""
        return self._section(self.phi, "phi", name)

    def _section(self, section: _SectionT, key: str, name: str) -> _SectionT:
        index = [rung.name for rung in self.rungs].index(name)
        own: dict[str, Any] = getattr(self.rungs[index], key)
        if not own:
            return section
        return strict_yaml.build(type(section), merged(plain(section), own), f"rungs.{index}.{key}")

    @property
    def corpus(self) -> DataConfig:
        """The corpus with its tokenizer: that of the first rung's source, where there is one and none is named."""
        first = self.rungs[0]
        if first.source is None or self.data.tokenizer.name is not None:
            return self.data
        tokenizer = dataclasses.replace(self.data.tokenizer, name=first.source, revision=first.revision)
        return dataclasses.replace(self.data, tokenizer=tokenizer)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, such that reading them back gives an equal one.

        Returns:
            Nested dictionaries and lists.
        """
        return {**plain(self), "rungs": [rung.to_dict() for rung in self.rungs]}


def _same_keys(own: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _same_keys(value, read[key])
        if isinstance(value, Mapping) and isinstance(read.get(key), Mapping)
        else read.get(key, value)
        for key, value in own.items()
    }


def plain(value: Any) -> Any:
    """Return a configuration, or any value in one, as dictionaries, lists and scalars."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values with changes in them: mappings are merged key by key, anything else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        before = result.get(key)
        result[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def overridden(ladder: Mapping[str, Any], changes: Mapping[str, Any]) -> LadderConfig:
    """Return the ladder of plain values with other values at dotted paths."""
    items = [f"{key}={_in_yaml(value)}" for key, value in changes.items()]
    return strict_yaml.build(LadderConfig, strict_yaml.apply_overrides(ladder, items))


def _in_yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("...\n").strip()


def find_config(path: str | os.PathLike[str]) -> Path:
    """Return the file of a configuration: of a path, or of the name of one that ships with the package."""
    require(
        isinstance(path, str | os.PathLike),
        f"the path of a configuration is {class_of(path)}; give a YAML file's, or the name of one of the package",
    )
    given = Path(path)
    if given.is_file():
        return given
    package = Path(str(resources.files("hf_progressive")))
    folders = (package / "configs", package.parent / "configs")  # an installed package, a checkout
    shipped = {file.stem: file for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")}
    if given.name == str(path) and given.stem in shipped:
        return shipped[given.stem]
    if (given / "ladder.yaml").is_file():
        raise FileNotFoundError(f"{path}: is a run folder; its configuration is {given / 'ladder.yaml'}")
    if given.is_dir():
        raise FileNotFoundError(f"{path or '.'}: is a folder; give a YAML file")
    if given.exists() or given.is_symlink():
        kind = "is no file with a text in it" if given.exists() else "is a link that leads to no file"
        raise FileNotFoundError(f"{path}: {kind}; give a YAML file")
    beside = [str(file) for file in given.parent.glob("*.y*ml")] if given.parent.is_dir() else []
    if near := difflib.get_close_matches(str(given), [*beside, *shipped], n=1):
        raise FileNotFoundError(f"{path}: no such file; did you mean {near[0]}?")
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
        refuse_credentials(mapping)  # before any message that repeats a value
        if "rungs" not in mapping and {"ladder", "recipes"} <= mapping.keys():
            raise ValueError(
                "is a study's configuration; `hf-progressive study` runs it, and its ladder is below `ladder`"
            )
        config = strict_yaml.build(LadderConfig, mapping)
        require_weight_in_ladder(mapping)
        return config
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
