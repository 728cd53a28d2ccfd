"""`kernel`: numba's compiler, set up the same way for every kernel of the house.

Machine code is cached in `ISOCENTER_HOME/kernels`; where that cannot be written (a read-only image) it is compiled anew
in each process. Kernels release the interpreter lock. Importing numba takes a moment, so only modules that hold kernels
import this one, and those are imported when a model is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from isocenter.models._kernel_cache import folder

F = TypeVar("F", bound=Callable[..., Any])


_FOLDER = folder()
if _FOLDER is not None:
    os.environ["NUMBA_CACHE_DIR"] = str(_FOLDER)

import numba  # noqa: E402 - reads the cache folder from the environment when it is imported

if _FOLDER is not None:
    numba.config.CACHE_DIR = str(_FOLDER)


def kernel(*signature: Any, **options: Any) -> Callable[[F], F]:
    """Compile a function to machine code, without the interpreter lock.

    With signatures (numba's, or strings) it is compiled (or taken from the cache) when its module is imported, without when it is first
    called. `options` go to `numba.njit`.
    """
    settings: dict[str, Any] = {"nogil": True, "cache": _FOLDER is not None, "boundscheck": False, **options}
    decorate = numba.njit(list(signature), **settings) if signature else numba.njit(**settings)

    def compile_(function: F) -> F:
        compiled: F = decorate(function)
        return compiled

    return compile_
