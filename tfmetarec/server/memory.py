"""Giving memory back to the system when a version has been unloaded."""

from __future__ import annotations

import ctypes
import gc
import threading
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # From malloc.h.
_ARENAS = 2
_MAPPED_BYTES = 1 << 20

_collecting = threading.Lock()


def _libc() -> Any:
    """glibc, or `None` where the C library is another one."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
    except OSError:
        return None


def prepare() -> None:
    """Settings of a process that only serves; call once, after the imports and before the first model.

    glibc gives each thread a heap of its own, which it rarely gives back, and after the first large buffer was
    freed it keeps others of that size too. With versions that come and go and a thread for each connection, a
    process then grows for hours without a leak.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _MAPPED_BYTES)
    gc.collect()
    gc.freeze()  # What TensorFlow's modules hold stays for ever; looking through it again stops every thread.


def give_back() -> None:
    """Frees the Python objects of a version that is gone, and hands free memory to the system."""
    with _collecting:
        gc.collect()
        libc = _libc()
        if libc is not None:
            libc.malloc_trim(0)
