"""Memory that a command frees stays its own."""

import ctypes
import subprocess
import sys

import pytest

# In a process of its own: what is set stays.
_PROGRAM = """
import resource
from launch.distributed.memory import keep_memory

pages = 2**13

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(pages * resource.getpagesize())
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert min(faults(), faults()) > pages / 2
assert keep_memory()
faults()
assert faults() < pages / 10
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_that_was_freed_is_used_again():
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True)
