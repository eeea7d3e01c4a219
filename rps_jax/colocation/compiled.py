"""How the core is compiled: one function, kept between runs, that holds all the others."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

WITHOUT_COUNTING: Any = {"_nrt": False}
"""The core makes no arrays, and to count references to those it has takes half of its time."""

inlined: Callable[[Callable[..., Any]], Any] = numba.njit(forceinline=True, **WITHOUT_COUNTING)
"""Compiles a part of the core. It is not kept by itself: see `source_digest`."""


def source_digest() -> str:
    """Returns a digest of all source of this package.

    Numba keeps a compiled function for as long as its own file does not change, and does not look
    at the functions that it calls. A function that closes over this digest is compiled again
    whenever any file of the package changes.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
