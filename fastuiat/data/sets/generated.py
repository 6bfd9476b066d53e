"""The pools of a million generated images that Rebuffi et al. (2021) published."""

from __future__ import annotations

from fastuiat.data.published import PublishedFile

BUCKET = "https://storage.googleapis.com/dm-adversarial-robustness"


def ddpm_images(dataset: str) -> PublishedFile:
    """Their DDPM images of a data set."""
    return PublishedFile(f"{BUCKET}/{dataset}_ddpm.npz", f"{dataset}_ddpm.npz")
