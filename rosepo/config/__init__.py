"""Configuration: one frozen model per stage, read from YAML files and dotted ``--set`` overrides.

Unknown keys are errors that name the nearest known key. Rules that join several keys are checked here, so that
nothing starts with a configuration that cannot work.
"""

from rosepo.config.base import Section
from rosepo.config.data import ColumnsConfig, DataConfig, PrepareConfig
from rosepo.config.evaluation import EvaluateConfig, RangeConfig, RayConfig, RecommendConfig
from rosepo.config.losses import LOSSES
from rosepo.config.model import LoraConfig, ModelConfig, ScratchConfig, TemplateConfig
from rosepo.config.oracle import OracleConfig
from rosepo.config.pairs import PairsConfig
from rosepo.config.reading import dump_config, folder_or_id, load_config, located, parse_config, replaced
from rosepo.config.root import Config
from rosepo.config.strategies import OWN_STRATEGY, STRATEGIES
from rosepo.config.training import AlignConfig, TrainConfig

__all__ = [
    "LOSSES",
    "OWN_STRATEGY",
    "STRATEGIES",
    "AlignConfig",
    "ColumnsConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "LoraConfig",
    "ModelConfig",
    "OracleConfig",
    "PairsConfig",
    "PrepareConfig",
    "RangeConfig",
    "RayConfig",
    "RecommendConfig",
    "ScratchConfig",
    "Section",
    "TemplateConfig",
    "TrainConfig",
    "dump_config",
    "folder_or_id",
    "load_config",
    "located",
    "parse_config",
    "replaced",
]
