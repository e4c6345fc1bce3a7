"""The matrix library that MLX's CPU build gets.

MLX's Linux wheel calls `sgemm_` through the dynamic linker and brings netlib's, 30 times slower than torch's.
Whichever is loaded globally first wins, so this runs before `import mlx.core`. A Mac needs none of it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path


def find_fast_blas() -> tuple[str, tuple[Path, ...]]:
    """The name (`torch`, `netlib` for none, `metal` on a Mac) and the files to load."""
    if sys.platform == "darwin":
        return "metal", ()
    torch = importlib.util.find_spec("torch")  # finds without importing
    if torch and torch.origin:
        file = Path(torch.origin).parent / "lib" / "libtorch_cpu.so"  # which brings what lies beside it
        if file.is_file():
            return "torch", (file,)
    return "netlib", ()


def load_fast_blas() -> None:
    """Load it globally; where that fails MLX is slow, and standard error says why."""
    try:
        for file in find_fast_blas()[1]:
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        sys.stderr.write(f"MLX uses its slow BLAS: {error}\n")
