"""A kernel that writes far behind a tensor, which breaks the context of its process."""

from typing import Any

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def far_store(x: Any, far: Any) -> None:
    tl.store(x + far, 1.0)
