"""`fastuiat doctor`."""

from __future__ import annotations


def doctor(argv: list[str]) -> None:
    import torch

    from fastuiat import __version__, data
    from fastuiat.training.compile import missing_for_compilation
    from fastuiat.training.precision import resolve_device, resolve_precision

    device = resolve_device("auto")
    rows = {
        "fastuiat": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "precision": resolve_precision("auto", device),
        "compile": missing_for_compilation(device) or "yes",
        "ffcv": "yes" if data.ffcv_available() else "not installed",
        "autoattack": autoattack_package(),
    }
    for name, value in rows.items():
        print(f"{name:12} {value}")


def autoattack_package() -> str:
    from importlib.util import find_spec

    found = [name for name in ("pyautoattack", "autoattack") if find_spec(name)]
    return ", ".join(found) or "not installed (pip install pyautoattack)"
