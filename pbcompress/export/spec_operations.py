"""The operations that a network without source code may consist of: pure functions of torch."""

import operator
from collections.abc import Callable
from typing import Any

import torch

from pbcompress.errors import CompressionError

__all__ = ["name_of", "operation"]

# Overloads of torch.ops.aten; "default" where none is named, a colon gives those that there are.
# None writes into an argument, reads files, runs code, or shows memory that was not set; none is
# of numbers alone, as TorchScript has them, or has a size that its values decide.
FAMILIES = {
    "elementwise": """
        abs add:Tensor,Scalar addcdiv addcmul atan bitwise_and:Tensor,Scalar,Scalar_Tensor
        bitwise_not bitwise_or:Tensor,Scalar,Scalar_Tensor
        bitwise_xor:Tensor,Scalar,Scalar_Tensor ceil celu clamp:default,Tensor
        clamp_max:default,Tensor clamp_min:default,Tensor cos cosh
        div:Tensor,Scalar,Tensor_mode,Scalar_mode elu eq:Tensor,Scalar erf exp expm1 floor
        floor_divide:default,Scalar fmod:Tensor,Scalar ge:Tensor,Scalar gelu gt:Tensor,Scalar
        hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan le:Tensor,Scalar
        leaky_relu lerp:Scalar,Tensor log log1p log2 log_sigmoid logical_and logical_not
        logical_or logical_xor lt:Tensor,Scalar masked_fill:Scalar,Tensor maximum minimum mish
        mul:Tensor,Scalar nan_to_num ne:Tensor,Scalar neg pow:Tensor_Tensor,Tensor_Scalar,Scalar
        prelu reciprocal relu relu6 remainder:Tensor,Scalar,Scalar_Tensor
        round:default,decimals rsqrt rsub:Tensor,Scalar selu sigmoid sign silu sin sinh softplus
        softshrink sqrt square sub:Tensor,Scalar tan tanh threshold trunc
        where:self,ScalarOther,ScalarSelf,Scalar
    """,
    "over an axis": """
        _log_softmax _softmax all:default,dim,dims amax amin any:default,dim,dims argmax argmin
        argsort:default,stable cummax cumprod cumsum linalg_vector_norm log_softmax:int logsumexp
        max:other,default,dim mean:default,dim median:default,dim min:other,default,dim
        prod:default,dim_int softmax:int sort:default,stable std:default,dim,correction
        sum:dim_IntList,default topk var:default,dim,correction var_mean:default,dim,correction
    """,
    "products and convolutions": """
        addmm baddbmm bilinear bmm conv1d:default,padding conv2d:default,padding
        conv3d:default,padding conv_transpose1d conv_transpose2d:input conv_transpose3d:input
        convolution cosine_similarity dot einsum linear matmul mm mv scaled_dot_product_attention
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
        max_pool3d upsample_bicubic2d:default,vec upsample_bilinear2d:default,vec
        upsample_linear1d:default,vec upsample_nearest1d:default,vec
        upsample_nearest2d:default,vec upsample_nearest3d:default,vec
        upsample_trilinear3d:default,vec
    """,
    "recurrent layers": """
        gru:input gru_cell lstm:input lstm_cell rnn_relu:input rnn_relu_cell rnn_tanh:input
        rnn_tanh_cell
    """,
    "elements made and moved": """
        _to_copy alias arange:default,start,start_step cat channel_shuffle chunk clone col2im
        constant_pad_nd contiguous diagonal embedding expand flatten:using_ints flip full
        full_like gather glu im2col index:Tensor index_select movedim:int,intlist narrow new_full
        new_ones new_zeros numpy_T ones ones_like pad permute pixel_shuffle pixel_unshuffle
        repeat repeat_interleave:self_int reshape roll scalar_tensor select:int slice:Tensor
        split:Tensor,sizes,default split_with_sizes squeeze:default,dim,dims stack sym_size:int t
        tile to:device,dtype,other,dtype_layout transpose:int tril triu unbind:int unflatten:int
        unfold unsqueeze zeros zeros_like
    """,
}
ATEN = frozenset(
    f"{packet}.{overload}"
    for names in FAMILIES.values()
    for packet, _, overloads in (name.partition(":") for name in names.split())
    for overload in (overloads or "default").split(",")
)
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
    elif space == "aten" and rest in ATEN:
        form = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if isinstance(form, torch._ops.OpOverload) and not form._schema.is_mutable:
            found = form
    if found is None:
        raise CompressionError(f"{name!r:.80} is not an operation that is allowed")
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
