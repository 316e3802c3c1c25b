"""The configuration of a ladder: frozen dataclasses, read from strict YAML.

Every field is documented once, in the text under it, with its unit. Unknown keys, wrong types and values out of range
raise a `ValueError` of one line that names the dotted path. This module imports neither torch nor transformers.
"""

from hf_progressive.config.after_training import CoreConfig, PublishConfig
from hf_progressive.config.data import DataConfig, TokenizerConfig
from hf_progressive.config.ladder import LadderConfig, find_config, load_ladder_config
from hf_progressive.config.model import GrowthConfig, ModelConfig, RungConfig
from hf_progressive.config.phi import FisherConfig, PhiConfig, SubspaceConfig
from hf_progressive.config.study import LearningRatesConfig, RecipeConfig, StudyConfig, load_study_config
from hf_progressive.config.training import TrainingConfig
from hf_progressive.config.trunk import TrunkConfig

__all__ = [
    "CoreConfig",
    "DataConfig",
    "FisherConfig",
    "GrowthConfig",
    "LadderConfig",
    "ModelConfig",
    "LearningRatesConfig",
    "PhiConfig",
    "PublishConfig",
    "RungConfig",
    "RecipeConfig",
    "StudyConfig",
    "SubspaceConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "TrunkConfig",
    "find_config",
    "load_ladder_config",
    "load_study_config",
]
