"""Modules that are imported when they are first used, so that help comes at once."""

from __future__ import annotations

import importlib
from typing import Any


class Later:
    """Stands for a module until something of it is needed."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)
