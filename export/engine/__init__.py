"""The engine: runs exported networks at the speed that the dropped multiply-adds promise (README.md)."""

from .session import Session as Session
from .session import TensorInfo as TensorInfo
