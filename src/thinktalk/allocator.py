"""Memory that one step frees and the next asks for again stays with the process.

glibc gives it back to the system as soon as a few hundred KB are free, and every page that comes
again costs a page fault: a third of the time of a vocoder block in a thread of its own (measured).
"""

import ctypes
import sys

# From <malloc.h>; setting one of them ends glibc's own, changing choice of the others.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 1 << 30  # more than this may be free before some is given back
LARGEST_ON_HEAP_BYTES = 32 << 20  # glibc allows no more; larger tensors are mapped one by one


def keep_freed_memory() -> None:
    """For the whole process; where the C library is not glibc, nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
