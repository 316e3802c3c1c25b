"""What happens with a trained rung: evaluation on CORE, publication on the Hub."""

from dataclasses import dataclass

from hf_progressive.config.checks import require, require_in_range
from hf_progressive.config.language import require_languages
from hf_progressive.config.licence import require_licence
from hf_progressive.config.ranges import Whole


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """Evaluation of every rung on DCLM's CORE."""

    bundle: str
    """Folder of a CORE bundle."""

    tasks: tuple[str, ...] = ()
    """Labels of the tasks to evaluate; empty takes all that have data."""

    max_per_task: Whole | None = None
    """Examples per task at the most; None takes all."""

    batch_size: Whole | None = None
    """Sequences per forward pass at the most; None takes as many as the device's memory allows. It changes the time
    and not the result."""

    def __post_init__(self) -> None:
        require_in_range(self)


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Publication of every rung. The token comes from HF_TOKEN or `hf auth login`, never from a file."""

    repo_id: str
    """The rungs' repositories, with `{name}` for a rung's name: `ORG/family-{name}`."""

    private: bool = False
    """Keep repositories and collection from the public."""

    license: str | None = None
    """Identifier of the weights' licence on the Hub, such as `apache-2.0`; None says nothing about it."""

    language: tuple[str, ...] = ()
    """ISO 639 codes of the languages in the data, or `code`."""

    collection: str | None = None
    """Title of a collection that gathers the family; None makes none."""

    def __post_init__(self) -> None:
        require("{name}" in self.repo_id, f"repo_id: {self.repo_id!r} lacks {{name}}, which stands for a rung's name")
        require_licence(self.license)
        require_languages(self.language)
        require(self.repo_id.count("/") == 1, f"repo_id: {self.repo_id!r} is not of the form ORG/NAME")
