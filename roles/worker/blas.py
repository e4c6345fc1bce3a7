"""The matrix library that MLX's CPU build gets.

MLX's Linux wheel calls `sgemm_` through the dynamic linker and brings netlib's, 30 times slower than torch's or
OpenBLAS's. Whichever is loaded globally first wins, so this runs before `import mlx.core`. A Mac needs none of it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path


def find_fast_blas() -> tuple[str, tuple[Path, ...]]:
    """The name (`torch`, `openblas`, `netlib` for none, `metal` on a Mac) and the files to load, in order."""
    if sys.platform == "darwin":
        return "metal", ()
    torch = importlib.util.find_spec("torch")  # finds without importing
    if torch and torch.origin:
        folder = Path(torch.origin).parent / "lib"
        files = tuple(folder / name for name in ("libgomp.so.1", "libc10.so", "libtorch_cpu.so"))
        if all(file.is_file() for file in files):
            return "torch", files
    for folder in (Path("/usr/lib") / f"{os.uname().machine}-linux-gnu", Path("/usr/lib64"), Path("/usr/lib")):
        for name in ("libopenblas.so.0", "openblas-pthread/libopenblas.so.0", "libopenblasp.so.0"):
            if (folder / name).is_file():
                return "openblas", (folder / name,)
    return "netlib", ()


def load_fast_blas() -> str:
    """Load it globally, and return the name of what MLX will use."""
    name, files = find_fast_blas()
    try:
        for file in files:
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return "netlib"
    return name
