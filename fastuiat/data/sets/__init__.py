"""The data sets: a file in this folder that registers one is all that `--dataset` takes."""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
