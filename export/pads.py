"""Rule: what keeps ONNX Runtime from taking zeros before a MaxPool for its own padding.

    MaxPool(Pad(x, zeros)) -> MaxPool(Clip(Pad(x, zeros), least float))

Zeros take part in the maximum, a MaxPool's own padding does not. ONNX Runtime (1.31.1) fuses the two as if they were the same, also without
its higher levels of optimisation, so that pools of negative numbers come out wrong. It leaves them apart with the Clip, which does nothing.
"""

from typing import Any

import numpy as np

from .graph import Refusal, add_initializer, constant


def keep_pads(model: Any) -> list[Refusal]:
    """Put the Clip between every Pad and the MaxPools that read it, where it does not pad with minus infinity."""
    from onnxscript import ir

    for pool in [node for node in model.graph if node.domain == "" and node.op_type == "MaxPool"]:
        padded = pool.inputs[0]
        pad = padded.producer()
        if pad is None or pad.domain != "" or pad.op_type != "Pad" or _is_least(pad):
            continue
        least = add_initializer(model, f"{padded.name}.least", np.array(np.finfo(np.float32).min, np.float32))
        clip = ir.node("Clip", inputs=[padded, least])
        clip.outputs[0].shape, clip.outputs[0].type = padded.shape, padded.type
        model.graph.insert_before(pool, clip)
        pool.replace_input_with(0, clip.outputs[0])
    return []


def _is_least(pad: Any) -> bool:
    value = constant(pad.inputs[2]) if len(pad.inputs) > 2 else None
    return value is not None and bool(value <= np.finfo(np.float32).min)
