"""What the engine does not compute runs in ONNX Runtime."""

import logging
from collections.abc import Sequence

from numpy.typing import NDArray

from fineprune.common.errors import RunError

from ..ir.program import Foreign
from ..reader.protobuf import ContradictionError, one_line

_LOG = logging.getLogger(__name__)


class Fallback:
    """A part of the file `where` in ONNX Runtime; ContradictionError where that refuses it."""

    def __init__(self, part: Foreign, where: str, threads: int) -> None:
        import onnxruntime

        self._outputs, self._doubt = list(part.outputs), part.doubt
        self._where = f"{where}: {part.label}" if part.label else where
        _LOG.info("%s: %s", where, part.note)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(part.model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class of their own
            raise ContradictionError(f"{self._where} cannot be loaded by ONNX Runtime: {one_line(error)}; export it again") from error

    def run(self, feeds: dict[str, NDArray]) -> Sequence[NDArray]:
        """The outputs of the segment."""
        try:
            outputs: Sequence[NDArray] = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise RunError(self._doubt or f"{self._where} fails in ONNX Runtime: {one_line(error)}") from error
        return outputs
