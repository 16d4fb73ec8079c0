"""The table of handlers by the name of their operator."""

from collections.abc import Callable

from ..builder import Builder, Node, Value

Handler = Callable[[Builder, Node], Value | tuple[Value, ...]]
HANDLERS: dict[str, Handler] = {}


def onnx(*names: str) -> Callable[[Handler], Handler]:
    """Make a function the handler of these operators."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register
