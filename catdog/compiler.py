"""PyTorch's optimizers import its compiler, a second of work and 100 MB, only to tell it to leave them alone."""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch

__all__ = ["put_off_compiler"]

NAME = "torch._dynamo"


class _PutOff(ModuleType):
    """Stands in for the compiler until somebody wants more of it than to be left alone."""

    @staticmethod
    def disable(function: Any = None, *_: Any, **__: Any) -> Any:
        return function or (lambda function: function)

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return getattr(importlib.import_module(NAME), name)


def put_off_compiler() -> None:
    """Have PyTorch import its compiler when it is to compile something, and not before."""
    if NAME not in sys.modules:
        torch._dynamo = sys.modules[NAME] = _PutOff(NAME)  # noqa: SLF001 - its own name for it
