"""The tensor operations of adversarial training that PyTorch has no single call for.

Each file holds one operation: its formula, its plain-PyTorch reference, which is what runs on the
CPU, and its Triton kernel for GPUs. Images are (B, C, H, W), dense, usually channels-last; pixels
and radii are in [0, 1]. `SPECS` is what tests, audit and bench iterate.
"""

from fastuiat_kernels.augment import SPEC as _augment
from fastuiat_kernels.augment import augment
from fastuiat_kernels.bank_apply import SPEC as _bank_apply
from fastuiat_kernels.bank_apply import bank_apply
from fastuiat_kernels.bank_step import SPEC as _bank_step
from fastuiat_kernels.bank_step import bank_accumulate, bank_step, bank_update
from fastuiat_kernels.conv3x3 import SPEC as _conv3x3
from fastuiat_kernels.conv3x3 import conv3x3, conv3x3_backward, pack_conv3x3
from fastuiat_kernels.conv3x3_sign_step import SPEC as _conv3x3_sign_step
from fastuiat_kernels.conv3x3_sign_step import conv3x3_sign_step, pack_image_gradient
from fastuiat_kernels.distill_loss import SPEC as _distill_loss
from fastuiat_kernels.distill_loss import distill_loss
from fastuiat_kernels.memory_update import SPEC as _memory_update
from fastuiat_kernels.memory_update import memory_update
from fastuiat_kernels.philox import Noise, noise_key, philox_uint32, uniform
from fastuiat_kernels.preactivation_blocks import preactivation_blocks
from fastuiat_kernels.random_start import SPEC as _random_start
from fastuiat_kernels.random_start import random_start
from fastuiat_kernels.residual_blocks import residual_blocks
from fastuiat_kernels.sign_step import SPEC as _sign_step
from fastuiat_kernels.sign_step import sign_step
from fastuiat_kernels.spec import SIZES, KernelSpec, Pointer, Size, Tolerance, Variant
from fastuiat_kernels.strided3x3 import SPEC as _strided3x3
from fastuiat_kernels.strided3x3 import pack_strided, strided3x3, strided3x3_backward

SPECS: tuple[KernelSpec, ...] = (
    _sign_step,
    _random_start,
    _augment,
    _bank_apply,
    _bank_step,
    _distill_loss,
    _memory_update,
    _conv3x3,
    _strided3x3,
    _conv3x3_sign_step,
)

__all__ = [
    "SIZES",
    "SPECS",
    "KernelSpec",
    "Noise",
    "Pointer",
    "Size",
    "Tolerance",
    "Variant",
    "augment",
    "bank_accumulate",
    "bank_apply",
    "bank_step",
    "bank_update",
    "conv3x3",
    "conv3x3_backward",
    "conv3x3_sign_step",
    "distill_loss",
    "memory_update",
    "noise_key",
    "pack_conv3x3",
    "pack_image_gradient",
    "pack_strided",
    "philox_uint32",
    "preactivation_blocks",
    "random_start",
    "residual_blocks",
    "sign_step",
    "strided3x3",
    "strided3x3_backward",
    "uniform",
]
