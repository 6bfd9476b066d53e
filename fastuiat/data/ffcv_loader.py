"""The loader that reads a .beton with FFCV: order, augmentation and lifetimes are our own.

FFCV only fetches bytes here. Its shuffling, seeds and augmentations are not used, since they
depend on its threads; the batches are those of ResidentLoader, bit for bit. What FFCV keeps to
itself is used where it is there; without it the same batches come slower, which the log says.
"""

from __future__ import annotations

import contextlib
import os
import queue
import weakref
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastuiat.config import UserError
from fastuiat.data.augmentation import Augmentation, Kind
from fastuiat.data.batch import Batch
from fastuiat.data.beton_file import JPEG, image_kind
from fastuiat.data.order import Order
from fastuiat.fast.torch_internals import say_once


@contextlib.contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Undoes what FFCV does to PyTorch's thread count, when imported as well as when used."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def available() -> bool:
    """Whether FFCV can be imported."""
    with torch_threads_kept():
        try:
            import ffcv.loader  # noqa: F401
        except (ImportError, OSError):  # OSError: a shared library of its is missing
            return False
    return True


# Read as numba is first imported. Its own first choice, TBB, was seen to wait for its threads for
# ever at the end of a process that was pinned to one core.
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")


@contextlib.contextmanager
def image_decoder(is_jpeg: bool = False) -> Iterator[Any]:
    """What decodes the images of a loader made meanwhile: reads of the file, or FFCV's own map.

    UserError where images are JPEGs and it cannot be made to read: its own decoder gives other
    pixels than the resident loader's.
    """
    with contextlib.ExitStack() as stack:
        try:
            from fastuiat.data.file_reads import ImageReads, JpegReads, reads_in_place_of_a_map

            stack.enter_context(reads_in_place_of_a_map())
            decoder: Any = JpegReads() if is_jpeg else ImageReads()
        except (ImportError, AttributeError) as error:
            if is_jpeg:
                raise UserError(
                    f"this FFCV cannot be made to read a .beton of JPEGs ({error}): choose "
                    "--loader resident"
                ) from error
            from ffcv.fields.decoders import SimpleRGBImageDecoder

            say_once(
                f"FFCV maps the .beton, which takes memory: it cannot be made to read ({error})"
            )
            decoder = SimpleRGBImageDecoder()
        yield decoder


class _FixedOrder:
    """An FFCV traversal order that is just the given samples."""

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = np.ascontiguousarray(samples, dtype=np.uint64).reshape(-1)

    def sample_order(self, epoch: int) -> np.ndarray:
        return self.samples


class FFCVLoader:
    """Batches on `device` from a .beton of images (N, H, W, 3), labels and indices.

    `workers` threads, 1 or more, read it; neither their number nor where an epoch is entered
    changes a batch. The first batch takes some seconds, which numba compiles for.
    """

    def __init__(
        self,
        beton: str | Path,
        order: Order,
        *,
        device: torch.device | str,
        flip: bool,
        workers: int,
        augment: Kind = "crop",
    ) -> None:
        if workers < 1:
            raise UserError(f"the ffcv loader needs at least 1 worker, got {workers}")
        self.order = order
        self.device = torch.device(device)
        self._open: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()
        self.beton, self.workers = Path(beton), workers
        resolution, mode = image_kind(self.beton)
        self.augmentation = Augmentation(kind=augment, flip=flip, resolution=resolution)
        self._is_jpeg = mode == JPEG
        with torch_threads_kept():
            self._loader = self._make()
        samples: Any = getattr(self._loader, "reader", None)
        self.num_samples = int(samples.num_samples if samples else len(self._loader.indices))

    def _make(self, indices: np.ndarray | None = None) -> Any:
        """FFCV's loader of all samples, or of some in their order."""
        import numba
        from ffcv.fields.decoders import IntDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor

        most: int = getattr(numba.config, "NUMBA_NUM_THREADS", 1)  # numba raises above it
        with image_decoder(self._is_jpeg) as decoder:
            return Loader(
                str(self.beton),
                batch_size=self.order.batch_size // self.order.world,
                num_workers=min(self.workers, most),
                os_cache=True,
                order=OrderOption.SEQUENTIAL,
                indices=indices,
                seed=0,  # else FFCV draws one from numpy's global generator
                drop_last=True,
                pipelines={
                    "image": [decoder, ToTensor()],
                    "label": [IntDecoder(), ToTensor()],
                    "index": [IntDecoder(), ToTensor()],
                },
            )

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch (from 1), from `start_step` on."""
        batches = self._batches(epoch, start_step)
        self._open.add(batches)
        return batches

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        whole = torch.from_numpy(self.order.whole(epoch)[start_step:])
        if not len(whole):
            return
        on_host, seed = self.order.own(whole), self.order.seed
        order = on_host.numpy()
        draws = self.augmentation.draw(seed, epoch, on_host, self.device)
        # FFCV's thread sets the thread count before it makes its first batch.
        with torch_threads_kept():
            reader = self._reader(order)
            fetched = next(reader)
        try:
            for i, host_index in enumerate(on_host):
                # What FFCV yields is a view of a buffer that it fills again a few batches on.
                if not torch.equal(fetched[2].flatten(), host_index):
                    raise RuntimeError("FFCV read other samples than it was told to")
                images, y, index = (self._own(tensor) for tensor in fetched)
                if getattr(getattr(self._loader, "memory_manager", None), "failed", False):
                    raise UserError(f"{self.beton} was cut short or cannot be read")
                x = self.augmentation.apply(images, draws.row(i))
                yield Batch(
                    x, y.squeeze(1), index.squeeze(1), epoch, start_step + i, seed, host_index,
                    whole[i],
                )  # fmt: skip
                fetched = next(reader, None)
        finally:
            _stop(reader)

    def _reader(self, order: np.ndarray) -> Any:
        # Its `order=` argument takes no class of ours; these two attributes are all it reads.
        if not (
            hasattr(self._loader, "traversal_order")
            and hasattr(self._loader, "first_traversal_order")
        ):
            say_once("FFCV takes no order of ours: its loader is made anew each epoch, slower")
            self._loader = self._make(_FixedOrder(order).samples)
            return iter(self._loader)
        self._loader.traversal_order = _FixedOrder(order)
        self._loader.first_traversal_order = self._loader.traversal_order.samples
        return iter(self._loader)

    def _own(self, tensor: Tensor) -> Tensor:
        """A copy on the device, through pinned memory where the copy can then overlap."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.clone()

    def close(self) -> None:
        """Ends every epoch still under way; its thread and buffers are gone afterwards."""
        for batches in list(self._open):
            batches.close()


def _stop(reader: Any) -> None:
    """Ends FFCV's thread, which FFCV itself leaves behind blocked on a full queue."""
    if not (hasattr(reader, "terminate_event") and hasattr(reader, "output_queue")):
        say_once("FFCV's thread cannot be ended from here: it is left to FFCV")
        return
    reader.terminate_event.set()
    while reader.is_alive():
        with contextlib.suppress(queue.Empty):
            reader.output_queue.get_nowait()
        reader.join(timeout=0.05)
    reader.close()
    reader.closed = True
