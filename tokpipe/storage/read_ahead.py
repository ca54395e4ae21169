"""Works on the next few items in threads, while the results are used in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(task: Callable[[T], R], items: Iterable[T], num_ahead: int) -> Generator[R]:
    """Yield ``task(item)`` for each item, in order, while up to ``num_ahead`` more are in progress.

    An error is raised in place of its result. Closing the iterator early does not wait for tasks.
    """
    pool = ThreadPoolExecutor(max(1, num_ahead), thread_name_prefix="read-ahead")
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
