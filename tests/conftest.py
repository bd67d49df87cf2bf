"""Triton's kernels run in its interpreter in the tests, on tensors of the CPU; it has to be told before a kernel is imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
