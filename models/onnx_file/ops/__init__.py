"""Which operators can be read: a handler makes the calls of torch that compute what a node does.

A handler takes the builder and a node, and returns a value for each output of the node.
"""

from . import arithmetic, layers, pools, shapes
from .table import HANDLERS

__all__ = ["HANDLERS", "arithmetic", "layers", "pools", "shapes"]
