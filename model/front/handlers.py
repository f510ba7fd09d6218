"""What each operation of PyTorch becomes; `shapes`, `pointwise` and `sums` fill the table."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from .fields import WHOLE_GRID, Field
from .refusal import Refusal
from .writer import Const

#: Writes an operation of PyTorch, called as it is.
Handler = Callable[..., Any]

Function = TypeVar("Function", bound=Handler)

HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Function], Function]:
    """Enter a function into the table, for operations of `torch.ops.aten`."""

    def enter(function: Function) -> Function:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return enter


def field(value: object, what: str) -> Field:
    """Return an operand that must be a field.

    Raises
    ------
    Refusal
        If it is a constant where the operation has only been written for fields.
    """
    if not isinstance(value, Field):
        raise Refusal(f"has {what} that is no state", "exchange its arguments")
    return value


def const(value: object, what: str) -> Const:
    """Return an operand that must not depend on the state."""
    if isinstance(value, Const):
        return value
    if isinstance(value, int | float):
        return Const(torch.tensor(float(value)))
    raise Refusal(
        f"has {what} that depend on the state, where a step graph has numbers",
        "compute them of parameters alone",
    )


def number(value: object, what: str) -> float:
    """Return an operand that must be a plain number."""
    if isinstance(value, Const) and value.value.numel() == 1:
        return float(value.value)
    if isinstance(value, int | float):
        return float(value)
    raise Refusal(f"has {what} that is no number", "write the number down")


#: Why an operation is refused: what it does, and what to do instead.
REFUSED: dict[str, tuple[str, str]] = {}


def _refuse(names: str, reason: str, remedy: str) -> None:
    REFUSED.update(dict.fromkeys(names.split(), (reason, remedy)))


_refuse(
    "group_norm native_group_norm layer_norm native_layer_norm instance_norm rms_norm "
    "_fused_rms_norm",
    "divides by a spread that it measures while it runs, and a cell has neither the whole grid nor "
    "a division",
    "train with BatchNorm2d, which is a part of the weights in eval mode, or without",
)
_refuse(
    "cudnn_batch_norm native_batch_norm _native_batch_norm_legit _batch_norm_with_update "
    "_native_batch_norm_legit_functional batch_norm",
    "measures the whole batch",
    "give it track_running_stats=True and train it: in eval mode it then is a part of the weights",
)
_refuse(
    "adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d global_avg_pool mean_pool",
    "takes all cells together",
    WHOLE_GRID,
)
_refuse(
    "cumsum cumprod sort topk median kthvalue logcumsumexp cummax cummin",
    "orders or adds up one after the other",
    "write out the sums, or the minima and maxima",
)
_refuse(
    "_fft_c2c _fft_r2c _fft_c2r fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftshift fft_rfftn "
    "fft_irfftn fft_fftn fft_ifftn stft",
    "is a transform of the whole grid",
    WHOLE_GRID,
)
_refuse(
    "scaled_dot_product_attention _softmax softmax log_softmax _log_softmax "
    "_scaled_dot_product_flash_attention_for_cpu _native_multi_head_attention",
    "divides, and takes exponentials, of what it computes",
    "take the largest channel outside the step, or use sigmoids",
)
_refuse(
    "native_dropout alpha_dropout feature_dropout bernoulli_dropout",
    "drops out at random",
    "compare torch.rand_like(...) with the share, which says what is drawn",
)
_refuse(
    "randn randn_like normal normal_functional exponential cauchy log_normal geometric poisson "
    "multinomial randperm",
    "draws what is not uniform",
    "use torch.rand or torch.rand_like: a cell has random bits",
)
_refuse(
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d pixel_shuffle pixel_unshuffle "
    "grid_sampler grid_sampler_2d affine_grid_generator conv_transpose2d avg_pool1d max_pool1d "
    "conv1d conv3d avg_pool3d max_pool3d interpolate im2col unfold col2im fold",
    "changes the grid or takes it apart in a way that is not written",
    "use 3x3 convolutions and pooling of stride 1",
)
_refuse(
    "argmax argmin",
    "gives the number of a channel",
    "compare the channels with their maximum",
)
_refuse(
    "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sin cos tan atan atan2 asin acos "
    "sinh cosh softsign logit erfinv linalg_vector_norm norm cosine_similarity fmod remainder "
    "cross cdist std var var_mean std_mean logsumexp",
    "is a function that sums, products and comparisons do not give",
    "use one that clipped lines come close to (tanh, sigmoid, silu, gelu, softplus, elu, mish)",
)
_refuse(
    "_local_scalar_dense item nonzero masked_select unique _unique2 equal is_nonzero",
    "asks what the state holds",
    "use torch.where, or a mask: all cells do the same",
)
