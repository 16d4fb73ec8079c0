"""The engine: runs exported networks at the speed that the dropped multiply-adds promise (README.md)."""

from .run.session import Session as Session
from .run.session import TensorInfo as TensorInfo
