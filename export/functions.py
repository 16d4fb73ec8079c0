"""The model-local functions of an exported file, as ONNX text: what a runtime that has never heard of fineprune executes.

    UnpackMask      bits -> mask               bit k of byte b (k = 0 is the least significant) is element 8*b + k, row-major
    UnpackWeights   values, bits -> weights    the values at the ones of the bit mask, row-major; zeros elsewhere
    DequantizeWeights  values, scales -> weights  int8 [F,...] times a scale for each filter
    MaskedConv      X, W, M, B -> Y            Y[n,f] = sum_c M[c] * sum_uv W[f,c,u,v] * X[n,c] at tap (u,v)  + B[f]
    MaskedDepthwiseConv  (the same signature)  the same sum where a group has one channel: M[c] factors out of it
    MaskedPointwiseConv  (the same signature)  the same sum for 1x1 kernels, stride 1, no padding: M multiplies the input

MaskedConv gathers the patches by a convolution with one-hot kernels, one output channel a tap (im2col), multiplies them by
the mask and convolves the result 1x1 with the matching weights. Of each channel it gathers `taps` taps only: those that any
filter uses, made up to that number with unused ones. Everything that depends on initializers only (unpacking, the choice of
taps, one-hot kernels, shapes) is folded by ONNX Runtime when a session is made: Conv, Mul, Conv and two Reshapes are left to run.

Shapes: X[N,C,H,W], W[F,C/group,kh,kw], M bool [C,oh,ow], B[F], Y[N,F,oh,ow]. Attributes: strides, pads, dilations, group as
of ONNX Conv, channels = C; taps = the most taps that the filters use of a channel; shape = the unpacked shape.
"""

from typing import Any

DOMAIN = "fineprune"
VERSION = 1
OPSETS = range(18, 24)
"""18 brought BitwiseAnd; 23 is the newest that ONNX Runtime 1.22 reads."""

DEPTHWISE = "MaskedDepthwiseConv"
DEQUANTIZE_WEIGHTS = "DequantizeWeights"
"""What DequantizeLinear does, which ONNX Runtime does not fold: the weights of a masked convolution have to be known beforehand."""
MASKED = "MaskedConv"
POINTWISE = "MaskedPointwiseConv"
UNPACK_MASK = "UnpackMask"
UNPACK_WEIGHTS = "UnpackWeights"
MASKED_CONVS = (MASKED, DEPTHWISE, POINTWISE)

_BODIES = {
    UNPACK_MASK: """
UnpackMask <shape> (bits) => (mask)
{
  zero = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [-1]> ()
  one = Constant <value = uint8 {1}> ()
  place = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
  bytes = Unsqueeze (bits, last)
  shifted = BitShift <direction = "RIGHT"> (bytes, place)
  digits = BitwiseAnd (shifted, one)
  padded = Reshape (digits, last)
  shape = Constant <value_ints : ints = @shape> ()
  size = ReduceProd <keepdims = 1> (shape)
  flat = Slice (padded, zero, size)
  shaped = Reshape (flat, shape)
  mask = Cast <to = 9> (shaped)
}""",
    UNPACK_WEIGHTS: """
UnpackWeights <shape> (values, bits) => (weights)
{
  axis = Constant <value_int = 0> ()
  last = Constant <value_ints = [-1]> ()
  nothing = Constant <value = float[1] {0.0}> ()
  zero = CastLike (nothing, values)
  mask = fineprune.UnpackMask <shape : ints = @shape> (bits)
  flat = Reshape (mask, last)
  kept = Cast <to = 7> (flat)
  rank = CumSum (kept, axis)
  place = Mul (rank, kept)
  table = Concat <axis = 0> (zero, values)
  dense = Gather (table, place)
  shape = Constant <value_ints : ints = @shape> ()
  weights = Reshape (dense, shape)
}""",
    DEQUANTIZE_WEIGHTS: """
DequantizeWeights (values, scales) => (weights)
{
  axes = Constant <value_ints = [1, 2, 3]> ()
  by_filter = Unsqueeze (scales, axes)
  real = CastLike (values, scales)
  weights = Mul (real, by_filter)
}""",
    MASKED: """
MaskedConv <strides, pads, dilations, group, channels, taps> (X, W, M, B) => (Y)
{
  same = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  rest = Constant <value_ints = [-1]> ()
  group_count = Constant <value_int : int = @group> ()
  groups = Reshape (group_count, one)
  channel_count = Constant <value_int : int = @channels> ()
  channels = Reshape (channel_count, one)
  tap_count = Constant <value_int : int = @taps> ()
  taps = Reshape (tap_count, one)
  kernel = Shape <start = 2, end = 4> (W)
  size = Shape <start = 1, end = 3> (M)
  filters = Shape <start = 0, end = 1> (W)
  filter_channels = Shape <start = 1, end = 2> (W)
  all_taps = ReduceProd <keepdims = 1> (kernel)
  table_shape = Concat <axis = 0> (groups, rest, filter_channels, all_taps)
  table = Reshape (W, table_shape)
  magnitudes = Abs (table)
  largest = ReduceMax <keepdims = 1> (magnitudes, one)
  use = Sign (largest)
  most, used_taps = TopK <axis = -1> (use, taps)
  filters_in_group = Div (filters, groups)
  chosen_shape = Concat <axis = 0> (groups, filters_in_group, filter_channels, taps)
  chosen = Expand (used_taps, chosen_shape)
  kept = GatherElements <axis = 3> (table, chosen)
  matrix_shape = Concat <axis = 0> (filters, rest, one, one)
  matrix = Reshape (kept, matrix_shape)
  square = Concat <axis = 0> (all_taps, all_taps)
  blank = ConstantOfShape <value = float[1] {0.0}> (square)
  identity = EyeLike (blank)
  tap_list = Reshape (used_taps, rest)
  tap_kernels = Gather (identity, tap_list)
  one_hot_shape = Concat <axis = 0> (rest, one, kernel)
  one_hot = Reshape (tap_kernels, one_hot_shape)
  columns = Conv <strides : ints = @strides, pads : ints = @pads, dilations : ints = @dilations, group : int = @channels> (X, one_hot)
  split = Concat <axis = 0> (same, channels, taps, size)
  blocks = Reshape (columns, split)
  keep = Cast <to = 1> (M)
  keep_taps = Unsqueeze (keep, one)
  masked = Mul (blocks, keep_taps)
  join = Concat <axis = 0> (same, rest, size)
  rows = Reshape (masked, join)
  Y = Conv <group : int = @group> (rows, matrix, B)
}""",
    POINTWISE: """
MaskedPointwiseConv <strides, pads, dilations, group, channels> (X, W, M, B) => (Y)
{
  keep = Cast <to = 1> (M)
  masked = Mul (X, keep)
  Y = Conv <group : int = @group> (masked, W, B)
}""",
    DEPTHWISE: """
MaskedDepthwiseConv <strides, pads, dilations, group, channels> (X, W, M, B) => (Y)
{
  same = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  rest = Constant <value_ints = [-1]> ()
  plane = Constant <value_ints = [1, 2]> ()
  channel_count = Constant <value_int : int = @channels> ()
  channels = Reshape (channel_count, one)
  size = Shape <start = 1, end = 3> (M)
  dense = Conv <strides : ints = @strides, pads : ints = @pads, dilations : ints = @dilations, group : int = @group> (X, W)
  split = Concat <axis = 0> (same, channels, rest, size)
  by_channel = Reshape (dense, split)
  keep = Cast <to = 1> (M)
  keep_filters = Unsqueeze (keep, one)
  masked = Mul (by_channel, keep_filters)
  join = Concat <axis = 0> (same, rest, size)
  products = Reshape (masked, join)
  bias = Unsqueeze (B, plane)
  Y = Add (products, bias)
}""",
}

_CALLS = {UNPACK_WEIGHTS: (UNPACK_MASK,)}


def functions(names: set[str], opset: int) -> list[Any]:
    """The `onnx.FunctionProto`s called `names` and those they call, callees first, their bodies in standard opset `opset`."""
    from onnx import parser

    needed = names.union(*(_CALLS.get(name, ()) for name in names))
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "{DOMAIN}" : {VERSION}]>'
    return [parser.parse_function(header + body) for name, body in _BODIES.items() if name in needed]
