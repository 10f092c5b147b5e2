"""`python -m runtime.preprocess` compiles the host kernel now instead of at its first use."""

import sys

from runtime.preprocess.build import KernelError, library

try:
    print(library())
except KernelError as e:
    sys.exit(f"error: {e}")
