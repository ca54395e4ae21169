"""Does the next few of a row of tasks in threads, while the results are used in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(task: Callable[[T], R], items: Iterable[T], num_ahead: int) -> Iterator[R]:
    """Yield ``task(item)`` of each item in order; ``num_ahead`` more are done or being done."""
    pool = ThreadPoolExecutor(max(1, num_ahead), thread_name_prefix="reader")
    ahead: deque[Future[R]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(task, item))
            if len(ahead) > num_ahead:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
