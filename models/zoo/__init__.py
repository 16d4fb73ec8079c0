"""CIFAR-style VGG, ResNet and WRN, torchvision classifiers and the user's own networks, by name."""

from .checkpoints import load_checkpoint
from .registry import ModelSpec, accepted_by, build, names, parse_args, torchvision_names
from .weight_files import missing_checkpoint

__all__ = ["ModelSpec", "accepted_by", "build", "load_checkpoint", "missing_checkpoint", "names", "parse_args", "torchvision_names"]
