"""`python -m runtime.preprocess` compiles the host kernel now instead of at its first use, and the device kernel where
nvcc is."""

import sys

from runtime.preprocess.build import KernelError, fatbin, library, nvcc

try:
    print(library())
    print(fatbin() if nvcc() else "no nvcc: pre-processing runs on the CPU, everything works")
except KernelError as e:
    sys.exit(f"error: {e}")
