"""`sigrl::SVFR` and `sigrl::GMC` as ONNX functions: one custom-domain node each, with a body of standard ops tiled over labels.

A runtime with a kernel for the node uses that; any other inlines the body. Both bodies hold a Loop whose tiles fill a scan
output (a slice with computed bounds does not build in TensorRT), so memory does not grow with P·C·D or C²·F. Matrix products
and tanh run in the dtype of the inputs; norms, softmax, exp, row scaling and every sum over patches or labels run in fp32.

The 8-bit form of SVFR, and `sigrl::LinearInt8x3`, which computes a product of the tower as three in 8 bits, are for ONNX
Runtime alone: its integer product with scaling (`com.microsoft`) saves two passes over a tile. SVFR quantises the outputs of
tanh, which lie within ±1, so its scale is fixed and no picture's result depends on another picture.
"""

from __future__ import annotations

import onnx
import onnx.parser

DOMAIN = "sigrl"
RUNTIME_DOMAIN = "com.microsoft"  # ONNX Runtime's own operators
OPSET = 20
LABEL_TILE = 4  # the fastest of 1 to 16 in ONNX Runtime on a CPU
EXP_LIMIT = 80.0  # exp overflows fp32 at 88; the rest is room for rounding

# S[c, d] = Σ_n softmax_n(E1) X and Y = X Σ_c softmax_n(E2), E = tanh(X ⊙ label) Wᵀ (docs/method.md, "Image side").
# The sum over labels adds tiles, and sums within a tile only at the end, which costs less than summing within every tile.
# Labels are padded with zero rows to fill the last tile. A zero row adds nothing to Sᵀ T. In stage 2 it would add 1/P to every
# patch, so the reciprocal of its denominator is multiplied by 0. `{shift}` subtracts the maximum where exp could overflow.
_SVFR = """
<domain: "sigrl", opset_import: ["": {opset}{runtime}]>
SVFR (patches, label_embedding, graph_projection, decouple, fuse, reconstruct{scales}) => (local)
{{
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
  three = Constant <value_ints = [3]> ()
  tile = Constant <value_ints = [{tile}]> ()
  minus_one = Constant <value_ints = [-1]> ()
  float_zero = Constant <value_float = 0.0> ()
  float_one = Constant <value_float = 1.0> ()
  always = Constant <value = bool {{1}}> ()
  tanh_step = Constant <value_float = 0.007874015748031496> ()
  middle = Constant <value = uint8 {{128}}> ()

  patch_shape = Shape (patches)
  batch = Slice (patch_shape, zero, one)
  dim = Slice (patch_shape, two, three)
  label_shape = Shape (label_embedding)
  labels = Slice (label_shape, zero, one)
  tile_less_one = Sub (tile, one)
  rounded_up = Add (labels, tile_less_one)
  trips = Div (rounded_up, tile)
  padded = Mul (trips, tile)
  padding = Sub (padded, labels)
  trip_count = Squeeze (trips)

  pads = Concat <axis = 0> (zero, zero, padding, zero)
  zero_like_label = CastLike (float_zero, label_embedding)
  label_rows = Pad (label_embedding, pads, zero_like_label)
  projection_fp32 = Cast <to = 1> (graph_projection)
  projection_rows = Pad (projection_fp32, pads, float_zero)
  mask_pads = Concat <axis = 0> (zero, padding)
  label_ones_shape = Concat <axis = 0> (labels)
  label_ones = Expand (float_one, label_ones_shape)
  mask = Pad (label_ones, mask_pads, float_zero)
  mask_shape = Concat <axis = 0> (trips, one, tile, one, one)
  mask_tiles = Reshape (mask, mask_shape)

  patches_fp32 = Cast <to = 1> (patches)
  x = Unsqueeze (patches, one)
  x_fp32 = Unsqueeze (patches_fp32, one)
  first_shape = Concat <axis = 0> (trips, tile, one, dim)
  first_tiles = Reshape (label_rows, first_shape)
  semantic_tiles = Loop (trip_count, always) <body = decouple_tile
    (int64 i, bool go_in) => (bool go, float[B, tile, D] semantic)
    {{
      go = Identity (go_in)
      label = Gather <axis = 0> (first_tiles, i)
      product = Mul (x, label)
      bounded = Tanh (product)
{decouple}
{shift}
      weight = Exp (safe)
      denominator = ReduceSum <keepdims = 0> (weight, two)
      weighted = Mul (weight, x_fp32)
      numerator = ReduceSum <keepdims = 0> (weighted, two)
      semantic = Div (numerator, denominator)
    }}>
  semantic_batch_first = Transpose <perm = [1, 0, 2, 3]> (semantic_tiles)
  semantic_shape = Concat <axis = 0> (batch, padded, dim)
  semantic = Reshape (semantic_batch_first, semantic_shape)

{between}
  second_shape = Concat <axis = 0> (batch, trips, tile, one, dim)
  fused_batch_first = Reshape (fused, second_shape)
  second_tiles = Transpose <perm = [1, 0, 2, 3, 4]> (fused_batch_first)
  nothing_each = Mul (x_fp32, float_zero)
  tile_shape = Concat <axis = 0> (one, tile, one, one)
  nothing = Expand (nothing_each, tile_shape)
  patch_weights = Loop (trip_count, always, nothing) <body = reconstruct_tile
    (int64 i, bool go_in, float[B, tile, P, D] sum_in) => (bool go, float[B, tile, P, D] sum_out)
    {{
      go = Identity (go_in)
      label = Gather <axis = 0> (second_tiles, i)
      product = Mul (x, label)
      bounded = Tanh (product)
{reconstruct}
{shift}
      weight = Exp (safe)
      denominator = ReduceSum <keepdims = 1> (weight, two)
      label_mask = Gather <axis = 0> (mask_tiles, i)
      scale = Div (label_mask, denominator)
      attention = Mul (weight, scale)
      sum_out = Add (sum_in, attention)
    }}>
  patch_weight = ReduceSum <keepdims = 0> (patch_weights, one)
  local_fp32 = Mul (patches_fp32, patch_weight)
  local = CastLike (local_fp32, patches)
}}
"""
# V from S: relu(Sᵀ T) with rows of unit norm, zero rows left zero; then S R Waᵀ + G Wbᵀ (docs/method.md, "Image side").
BETWEEN = """
  label_fp32 = Cast <to = 1> (label_rows)
  semantic_columns = Transpose <perm = [0, 2, 1]> (semantic)
  relation_signed = MatMul (semantic_columns, label_fp32)
  relation = Relu (relation_signed)
  norm = ReduceL2 <keepdims = 1> (relation, minus_one)
  is_zero = Equal (norm, float_zero)
  divisor = Where (is_zero, float_one, norm)
  unit_relation = Div (relation, divisor)
  related = MatMul (semantic, unit_relation)
  fuse_fp32 = Cast <to = 1> (fuse)
  projected = MatMul (related, fuse_fp32)
  fused_fp32 = Add (projected, projection_rows)
  fused = CastLike (fused_fp32, patches)
"""
_TYPED_PRODUCT = """      energy_typed = MatMul (bounded, {weight})
      energy = Cast <to = 1> (energy_typed)"""
# Unsigned steps of 1/127 around 128, since 8-bit products multiply unsigned by signed numbers. `{weight}_scale` [D] has the
# product of both step sizes.
_INT8_PRODUCT = """      steps = QuantizeLinear (bounded, tanh_step, middle)
      energy = com.microsoft.MatMulIntegerToFloat (steps, {weight}, float_one, {weight}_scale, middle)"""
_PLAIN = "      safe = Identity (energy)"
_SHIFTED = """      largest = ReduceMax <keepdims = 1> (energy, two)
      safe = Sub (energy, largest)"""

# e[i, j] = (1+s)/2 a·z[j] + (1−s)/2 a·|z[i] + z[j]| + const(i), which the softmax cancels (docs/method.md, identity 4).
# ELU is spelled out, since TensorRT for RTX 1.7 fails to build an Elu after a Loop. So are shapes: with no labels, -1 would be
# undetermined.
_GAT_LAYER = """
  z{n}_rows = MatMul ({h}, weight{n})
  z{n}_rows_fp32 = Cast <to = 1> (z{n}_rows)
  attention{n}_fp32 = Cast <to = 1> (attention{n})
  width{n} = Shape (attention{n})
  weight{n}_shape = Shape (weight{n})
  columns{n} = Slice (weight{n}_shape, one, two)
  count{n} = Div (columns{n}, width{n})
  z{n}_shape = Concat <axis = 0> (labels, count{n}, width{n})
  z{n} = Reshape (z{n}_rows_fp32, z{n}_shape)
  heads{n} = Transpose <perm = [1, 0, 2]> (z{n})
  column{n} = Unsqueeze (attention{n}_fp32, one)
  own{n}_unscaled = MatMul (z{n}, column{n})
  own{n} = Mul (own{n}_unscaled, linear_part)
  column{n}_scaled = Mul (column{n}, absolute_part)
  rows{n} = Loop (label_count, always) <body = graph_row{n}
    (int64 i, bool go_in) => (bool go, float[H, F] row)
    {{
      go = Identity (go_in)
      node = Gather <axis = 0> (z{n}, i)
      pair = Add (z{n}, node)
      magnitude = Abs (pair)
      joint = MatMul (magnitude, column{n}_scaled)
      energy_column = Add (joint, own{n})
      energy = Transpose <perm = [1, 2, 0]> (energy_column)
      weight = Softmax <axis = -1> (energy)
      row_heads = MatMul (weight, heads{n})
      row = Squeeze (row_heads, one)
    }}>
  out{n}_shape = Concat <axis = 0> (labels, columns{n})
  out{n}_fp32 = Reshape (rows{n}, out{n}_shape)
"""
_GMC = """
<domain: "sigrl", opset_import: ["": {opset}]>
GMC (label_embedding, weight1, attention1, weight2, attention2) => (graph)
{{
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
  linear_part = Constant <value_float = 0.6> ()
  absolute_part = Constant <value_float = 0.4> ()
  float_one = Constant <value_float = 1.0> ()
  always = Constant <value = bool {{1}}> ()
  shape = Shape (label_embedding)
  labels = Slice (shape, zero, one)
  label_count = Squeeze (labels)
{layer1}
  positive = Relu (out1_fp32)
  negative = Sub (out1_fp32, positive)
  exponential = Exp (negative)
  saturated = Sub (exponential, float_one)
  hidden_fp32 = Add (positive, saturated)
  hidden = CastLike (hidden_fp32, label_embedding)
{layer2}
  graph = CastLike (out2_fp32, label_embedding)
}}
"""
# x and W as two 8-bit digits each: x = step (first + second / 126) and W = scale (high + low / 126). The product of the second
# digits, 2⁻¹⁴ of the whole, is left out. The two products with a factor of 1/126 are computed as one of twice the width.
# The maximum is computed row by row, which uses all cores. `least` keeps the step above zero where all of x is zero.
_LINEAR = """
<domain: "sigrl", opset_import: ["": {opset}, "{runtime}": 1]>
LinearInt8x3 (x, high, low, scale, bias) => (y)
{{
  last = Constant <value_ints = [-1]> ()
  middle = Constant <value = uint8 {{128}}> ()
  part = Constant <value_float = 0.007874015748031496> ()
  finer = Constant <value_float = 0.007936507936507936> ()
  least = Constant <value_float = 1e-30> ()
  magnitude = Abs (x)
  largest_each = ReduceMax <keepdims = 0> (magnitude, last)
  largest = ReduceMax <keepdims = 0> (largest_each)
  largest_positive = Max (largest, least)
  step = Mul (largest_positive, part)
  first = QuantizeLinear (x, step, middle)
  coarse = DequantizeLinear (first, step, middle)
  rest = Sub (x, coarse)
  fine_step = Mul (step, finer)
  second = QuantizeLinear (rest, fine_step, middle)
  digits = Concat <axis = -1> (first, second)
  low_and_high = Concat <axis = 0> (low, high)
  main = {runtime}.MatMulIntegerToFloat (first, high, step, scale, middle, , bias)
  correction = {runtime}.MatMulIntegerToFloat (digits, low_and_high, fine_step, scale, middle)
  y = Add (main, correction)
}}
"""


def svfr_function(shift: bool, int8: bool = False) -> onnx.FunctionProto:
    """`SVFR(X [B, P, D], T [C, D], G Wbᵀ [C, D], W1ᵀ, Waᵀ, W2ᵀ [D, D]) → Y [B, P, D]`, all of one float dtype.

    `shift` subtracts the maximum over patches before exp; see `export.onnx.exponent_bound`. `int8` takes W1ᵀ and W2ᵀ in int8
    (`quantising.columns`), the other inputs in fp32, and two more inputs [D] fp32: the scales of their columns divided by 127.
    """
    product = _INT8_PRODUCT if int8 else _TYPED_PRODUCT
    text = _SVFR.format(
        opset=OPSET,
        runtime=f', "{RUNTIME_DOMAIN}": 1' if int8 else "",
        tile=LABEL_TILE,
        between=BETWEEN,
        shift=_SHIFTED if shift else _PLAIN,
        scales=", decouple_scale, reconstruct_scale" if int8 else "",
        decouple=product.format(weight="decouple"),
        reconstruct=product.format(weight="reconstruct"),
    )
    return onnx.parser.parse_function(text)


def gmc_function() -> onnx.FunctionProto:
    """`GMC(T [C, D], W1ᵀ [D, H·F], a1 [F], W2ᵀ, a2) → G [C, D]`: two GATv2 layers of slope 0.2, an ELU between, row by row."""
    layers = {f"layer{n}": _GAT_LAYER.format(n=n, h=h) for n, h in ((1, "label_embedding"), (2, "hidden"))}
    return onnx.parser.parse_function(_GMC.format(opset=OPSET, **layers))


def linear_function() -> onnx.FunctionProto:
    """`LinearInt8x3(x [..., K], high and low [K, N] int8, scale [N] fp32, bias [N]) → x Wᵀ + bias [..., N]`, bias optional.

    Weights come from `quantising.digits`; x has one scale, computed over all of it.
    """
    return onnx.parser.parse_function(_LINEAR.format(opset=OPSET, runtime=RUNTIME_DOMAIN))
