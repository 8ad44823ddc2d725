"""Freed memory is used again without page faults."""

import platform
import subprocess
import sys

import pytest

# Three buffers of 20 MB, freed and asked for again; glibc by itself keeps no more than two.
PROGRAM = """
import resource, sys
import numpy as np
from thinktalk.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def use():
    buffers = [np.ones(20 * 2**18, np.float32) for _ in range(3)]

for _ in range(3):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_no_page_faults() -> None:
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, mode]))
        for mode in ("kept", "given back")
    )
    assert kept < 100 and given_back > 10_000
