"""Whether the ranks that share an evaluation out have the same one in hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from fastuiat.data.fingerprint import blocks_of
from fastuiat.evaluation.attacks import Attack, Evaluation


def refuse_other_work(
    evaluation: Evaluation, attacks: Sequence[Attack], radii: Sequence[float]
) -> None:
    """UserError where a rank has another net, other images or settings, or another PyTorch."""
    ranks = evaluation.ranks
    if ranks.world == 1:
        return
    images = chain(blocks_of(evaluation.images.images), [evaluation.images.labels])
    settings = [attack.described() for attack in attacks]
    ranks.refuse_differences(
        {
            "PyTorch": torch.__version__,
            "attacks": [attack.name for attack in attacks],
            "radii": radii,
            "settings": [*settings, f"seed {evaluation.seed}", f"batch {evaluation.batch_size}"],
            "device": evaluation.device.type,
            "number of images": len(evaluation.images.labels),
            "test images": digest(map(torch.from_numpy, images)),
            "weights": digest(evaluation.model.state_dict().values()),
        }
    )


def digest(tensors: Iterable[Tensor]) -> str:
    """The beginning of the SHA-256 of their bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]
