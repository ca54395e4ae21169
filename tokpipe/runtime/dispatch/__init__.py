"""Who works on what: a pure state machine, part by part. See ``dispatcher``."""

from tokpipe.runtime.dispatch.dispatcher import Dispatcher
from tokpipe.runtime.dispatch.protocol import Limits

__all__ = ["Dispatcher", "Limits"]
