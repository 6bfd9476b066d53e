"""Nets as somebody might publish them."""

from __future__ import annotations

from torch import manual_seed, nn

import fastuiat

ARCH = "wrn-10-1"


def net_of(seed: int) -> nn.Module:
    """With BatchNorm statistics of its own."""
    manual_seed(seed)
    made = fastuiat.build_model(ARCH).eval()
    for name, buffer in made.named_buffers():
        if buffer.is_floating_point():
            buffer.normal_(0, 0.1) if name.endswith("mean") else buffer.uniform_(0.5, 1.5)
    return made
