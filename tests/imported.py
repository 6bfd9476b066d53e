"""What commands import as they come to it: a process that has it forks them without a start.

Nothing is computed by an import, and no thread is begun: threads do not survive a fork.
"""

from __future__ import annotations

import importlib

from fastuiat import cli

COMMANDS = (
    "bench.gpu.recorded", "commands.published", "commands.settings_file",
    "evaluation", "evaluation.autoattack", "evaluation.inverse", "export", "fast.allocator",
    "models.nests", "progress", "recipes", "report.document", "reproduce", "training.run",
)  # fmt: skip
LIBRARIES = (
    "importlib.readers", "importlib.resources.readers", "matplotlib.backends.backend_agg",
    "pyautoattack", "pytest", "rich._emoji_codes", "safetensors.torch", "sklearn.datasets.data",
    "sklearn.datasets.descr", "torch._inductor.compile_fx", "torch.distributed.run",
    "torch.utils.flop_counter", "torch.utils.serialization.config", "torch.utils.tensorboard",
    "typeguard", "tyro._backends._argparse_formatter", "tyro._backends._tyro_backend",
    "tyro.constructors._primitive_spec", "tyro.constructors._struct_spec_dataclass",
)  # fmt: skip


def import_all() -> None:
    for name in (*(f"fastuiat.{name}" for name in COMMANDS), *LIBRARIES):
        importlib.import_module(name)
    for command in cli.COMMANDS:
        cli.function_of(command)
