"""The tensor operations of adversarial training that PyTorch has no single call for.

Each file holds one operation, its formula and its plain-PyTorch reference, which is what runs on
the CPU. Images are (B, C, H, W), dense, usually channels-last; pixels and radii are in [0, 1].
"""

from fastuiat_kernels.augment import augment
from fastuiat_kernels.bank_apply import bank_apply
from fastuiat_kernels.bank_step import bank_accumulate, bank_step, bank_update
from fastuiat_kernels.distill_loss import distill_loss
from fastuiat_kernels.memory_update import memory_update
from fastuiat_kernels.philox import Noise, noise_key, philox_uint32, uniform
from fastuiat_kernels.random_start import random_start
from fastuiat_kernels.sign_step import sign_step

__all__ = [
    "Noise",
    "augment",
    "bank_accumulate",
    "bank_apply",
    "bank_step",
    "bank_update",
    "distill_loss",
    "memory_update",
    "noise_key",
    "philox_uint32",
    "random_start",
    "sign_step",
    "uniform",
]
