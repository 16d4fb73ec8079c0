"""Trainers: anything that turns a model and data into a better model."""

from .batchnorm import recalibrate_batchnorm
from .config import TrainConfig
from .device import resolve_device
from .evaluate import Evaluation, evaluate
from .results import EpochRecord, TrainResult
from .trainer import train

__all__ = ["EpochRecord", "Evaluation", "TrainConfig", "TrainResult", "evaluate", "recalibrate_batchnorm", "resolve_device", "train"]
