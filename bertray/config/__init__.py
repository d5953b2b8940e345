"""Every setting of every command, with its default and its meaning, and how a job's config is read.

Precedence: defaults < YAML file < ``key=value`` on the command line. Nothing is read from the
environment. An unknown key is an error that says what there is.
"""

from bertray.config.augmentation import Augmentation, Distillation, Method
from bertray.config.evaluate import EvaluateCalibration, EvaluateConfig, Gate, Intervals
from bertray.config.faults import unknown_key
from bertray.config.keys import kinds_of, known_keys
from bertray.config.nightly import Alert, Challenger, NightlyConfig
from bertray.config.reading import dump_config, load_config, with_settings
from bertray.config.report import ReportConfig
from bertray.config.score import Abstain, InferenceModel, InferenceText, Input, Pool, ScoreConfig
from bertray.config.search import SEARCHABLE_BESIDE_OPTIM, Range, Search
from bertray.config.section import CalibrationMethod, Section
from bertray.config.train import Optim, Scaling, TrainConfig, TrainData, Training, TrainModel

JOBS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "score": ScoreConfig,
    "report": ReportConfig,
    "nightly": NightlyConfig,
}

__all__ = [
    "JOBS",
    "SEARCHABLE_BESIDE_OPTIM",
    "Abstain",
    "Alert",
    "Augmentation",
    "CalibrationMethod",
    "Challenger",
    "Distillation",
    "EvaluateCalibration",
    "EvaluateConfig",
    "Gate",
    "InferenceModel",
    "InferenceText",
    "Input",
    "Intervals",
    "Method",
    "NightlyConfig",
    "Optim",
    "Pool",
    "Range",
    "ReportConfig",
    "Scaling",
    "ScoreConfig",
    "Search",
    "Section",
    "TrainConfig",
    "TrainData",
    "TrainModel",
    "Training",
    "dump_config",
    "kinds_of",
    "known_keys",
    "load_config",
    "unknown_key",
    "with_settings",
]
