"""Asynchronous SGD with a parameter server: SGD, SSGD, ASGD, DC-ASGD and LC-ASGD, simulated in one process or on Ray."""

from .config import AsyncConfig, TimeConfig

__all__ = ["AsyncConfig", "TimeConfig"]
