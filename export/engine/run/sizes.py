"""Files that leave the height and width of images free: each size that comes has a session of its own, as if the file had that size.

What is planned depends on sizes: where tensors lie, how work is cut, which kernel is fastest.
"""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from ..reader.ports import input_ports
from ..reader.protobuf import Content, parsed_model

MOST_SIZES = 8


class Sizes:
    """Sessions of a file by the sizes of its inputs, for those that came last; `make` makes one of a file of one size."""

    def __init__(self, content: bytes, where: str, make: Callable[[Content], Any]) -> None:
        self._content, self._where, self._make = content, where, make
        self._kept: dict[tuple[tuple[int, ...], ...], Any] = {}

    def session(self, feeds: Mapping[str, NDArray]) -> Any:
        """That for the sizes of `feeds`, which fit the file."""
        shapes = tuple(feeds[name].shape[1:] for name in sorted(feeds))
        kept = self._kept.pop(shapes, None)
        if kept is None:
            while len(self._kept) >= MOST_SIZES:
                self._kept.pop(next(iter(self._kept))).close()
            sizes = " and ".join("x".join(map(str, shape)) for shape in shapes)
            kept = self._make(Content(self._fixed(feeds), f"{self._where} for {sizes}"))
        self._kept[shapes] = kept  # the newest is the last
        return kept

    def close(self) -> None:
        """All of them."""
        for kept in self._kept.values():
            kept.close()
        self._kept = {}

    def _fixed(self, feeds: Mapping[str, NDArray]) -> bytes:
        """The file with these sizes in the place of free ones; the size of the batch stays as it is."""
        model = parsed_model(self._content, self._where)
        free = {port.name for port in input_ports(model, self._where) if port.is_of_any_size}
        for value in model.graph.input:
            if value.name in free:
                for place in (2, 3):
                    value.type.tensor_type.shape.dim[place].dim_value = feeds[value.name].shape[place]
        content: bytes = model.SerializeToString()
        return content
