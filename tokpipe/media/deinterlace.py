"""Makes whole frames of interlaced ones."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import av.filter

from tokpipe.errors import SourceError


def deinterlaced(frames: Iterator[Any]) -> Iterator[Any]:
    """Replace the second field of each interlaced frame by what the first one shows (bwdif).

    Number, order and times of the frames stay, and progressive ones pass as they are. A frame only
    depends on itself and the frames before and after it.
    """
    graph = kind = None
    times: deque[int | None] = deque()
    while True:
        failure, frame = None, None
        try:
            frame = next(frames, None)
        except SourceError as error:
            failure = error
        wanted = frame and (frame.width, frame.height, frame.format.name)
        if graph is not None and wanted != kind:
            graph.push(None)
            yield from _ready(graph, times)
            graph = None
        if failure is not None:
            raise failure
        if frame is None:
            return
        if graph is None:
            graph, kind = _bwdif(frame), wanted
        times.append(frame.pts)
        graph.push(frame)
        yield from _ready(graph, times)


def _bwdif(frame: Any) -> Any:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    )
    graph.configure()
    return graph


def _ready(graph: Any, times: deque[int | None]) -> Iterator[Any]:
    """Yield the frames that the filter has finished, with their times."""
    while times:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):  # it waits for the next frame
            return
        frame.pts = times.popleft()
        yield frame
