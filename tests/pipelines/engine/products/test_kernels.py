"""The Triton kernels against plain torch, in Triton's interpreter: no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

TOLERANCE = {"float32": 1e-6, "float16": 1e-3}
"""float16: what rounding the result costs."""


def test_every_kind_of_product_is_what_torch_makes_of_it() -> None:
    """Odd sizes, own and shared weights, with and without bias, low rank, GEGLU, persistence and descriptors."""
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kernel_cases.py"))],
        capture_output=True,
        text=True,
        check=False,
    )
    if "only 0-dimensional arrays can be converted" in run.stderr:
        pytest.skip("the interpreter of Triton 3.6 does not run with NumPy 2.4")
    assert run.returncode == 0, run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert len(lines) == 21
    for line in lines:
        *case, dtype, difference = line.split()
        assert float(difference) < TOLERANCE[dtype], case
