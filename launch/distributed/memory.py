"""Memory of CPU programs, kept from step to step."""

import ctypes

_SETTINGS = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}
"""Of `mallopt`, by their names in malloc.h of glibc: number and value."""


def keep_memory() -> bool:
    """Has this process keep what it frees, for what it allocates next.

    XLA allocates what a program needs besides its arguments anew at each call. Otherwise glibc
    returns arrays to the system when they are freed, and every page of the next ones is a fault.

    Returns:
        Whether it does; only glibc can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*each) for each in _SETTINGS.values())
