"""The operations that a network without source code may consist of: pure functions of torch."""

import operator
from collections.abc import Callable
from typing import Any

import torch

from pbcompress.errors import CompressionError

__all__ = ["name_of", "operation"]

# Names of torch.ops.aten; forms that write into an argument are left out by their signature.
# Nothing here reads files, runs code, or shows memory that was not set.
FAMILIES = {
    "elementwise": """
        abs add addcdiv addcmul atan bitwise_and bitwise_not bitwise_or bitwise_xor ceil
        celu clamp clamp_max clamp_min cos cosh div elu eq erf exp expm1 floor
        floor_divide fmod ge gelu gt hardshrink hardsigmoid hardswish hardtanh isfinite
        isinf isnan le leaky_relu lerp log log1p log2 log_sigmoid logical_and
        logical_not logical_or logical_xor lt masked_fill maximum minimum mish mul
        nan_to_num ne neg pow prelu reciprocal relu relu6 remainder round rsqrt rsub
        selu sigmoid sign silu sin sinh softplus softshrink sqrt square sub tan tanh
        threshold trunc where
    """,
    "over an axis": """
        _log_softmax _softmax all amax amin any argmax argmin argsort cummax cumprod
        cumsum linalg_vector_norm log_softmax logsumexp max mean median min prod softmax
        sort std sum topk var var_mean
    """,
    "products and convolutions": """
        addmm baddbmm bilinear bmm conv1d conv2d conv3d conv_transpose1d
        conv_transpose2d conv_transpose3d convolution cosine_similarity dot einsum
        linear matmul mm mv scaled_dot_product_attention
    """,
    "norms": """
        _native_batch_norm_legit_no_training _weight_norm group_norm instance_norm
        layer_norm native_group_norm native_layer_norm rms_norm
    """,
    "pools and grids": """
        _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
        adaptive_max_pool3d affine_grid_generator avg_pool1d avg_pool2d avg_pool3d
        grid_sampler grid_sampler_2d max_pool1d max_pool2d max_pool2d_with_indices
        max_pool3d upsample_bicubic2d upsample_bilinear2d upsample_linear1d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    """,
    "recurrent layers": """
        gru gru_cell lstm lstm_cell rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell
    """,
    "elements made and moved": """
        _to_copy alias arange cat channel_shuffle chunk clone col2im constant_pad_nd
        contiguous diagonal embedding expand flatten flip full full_like gather glu
        im2col index index_select movedim narrow new_full new_ones new_zeros numpy_T
        ones ones_like pad permute pixel_shuffle pixel_unshuffle repeat
        repeat_interleave reshape roll scalar_tensor select slice split split_with_sizes
        squeeze stack sym_size t tile to transpose tril triu unbind unflatten unfold
        unsqueeze zeros zeros_like
    """,
}
ATEN = frozenset(name for names in FAMILIES.values() for name in names.split())
# of whole numbers that a network computes from the batch size, and of what returns several tensors
PYTHON = frozenset({"add", "floordiv", "getitem", "mod", "mul", "neg", "sub", "truediv"})


def operation(name: str) -> Callable[..., Any]:
    """Return an operation.

    Args:
        name: E.g. "aten.add.Tensor" or "operator.mul".

    Raises:
        CompressionError: It is not one that is allowed.

    Example:
        >>> operation("aten.add.Tensor")(torch.ones(1), 2)
        tensor([3.])
        >>> operation("aten.add_.Tensor")
        Traceback (most recent call last):
        pbcompress.errors.CompressionError: 'aten.add_.Tensor' is not an operation that is allowed
    """
    space, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    found: Any = None
    if space == "operator" and rest in PYTHON:
        found = getattr(operator, rest)
    elif space == "aten" and packet in ATEN and overload:
        form = getattr(getattr(torch.ops.aten, packet), overload, None)
        if isinstance(form, torch._ops.OpOverload) and not form._schema.is_mutable:
            found = form
    if found is None:
        raise CompressionError(f"{name!r} is not an operation that is allowed")
    return found  # type: ignore[no-any-return]


def name_of(target: Any) -> str:
    """Return the name of what a node of an exported graph calls.

    Example:
        >>> name_of(torch.ops.aten.add.Tensor), name_of(operator.mul)
        ('aten.add.Tensor', 'operator.mul')
    """
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "").lstrip("_")
    return f"{module}.{getattr(target, '__name__', target)}"
