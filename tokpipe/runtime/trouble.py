"""What Ray's exceptions mean for a job: who is at fault, and a line for people."""

import re
from typing import Literal

from ray.exceptions import RayActorError, RayTaskError

Fault = Literal["inputs_lost", "node", "worker", "cluster", "fault"]
"""Inputs that are gone are made again. What is wrong with a node costs no clip. A worker that died,
and a fault of a stage's code or in how it uses Ray, is blamed on a clip that was there alone. A
cluster that does not work with this driver ends the run."""

# By name, because versions of Ray have different classes. Also holds for derived ones.
_KNOWN: dict[str, tuple[Fault, str]] = {
    "ObjectLostError": ("inputs_lost", "it is gone from Ray's object store"),
    "PlasmaObjectNotAvailable": ("inputs_lost", "it is gone from Ray's object store"),
    "OutOfDiskError": ("node", "the disk that Ray spills objects to is full: clear /tmp/ray*"),
    "ObjectStoreFullError": ("node", "Ray's object store is full: enlarge /dev/shm, and it"),
    "OutOfMemoryError": ("node", "Ray's memory monitor killed the worker: lower max_actors"),
    "RuntimeEnvSetupError": ("node", "Ray cannot prepare its runtime_env"),
    "RaySystemError": ("node", "Ray itself failed"),
    "LocalRayletDiedError": ("node", "the raylet of its node died"),
    "ActorUnschedulableError": ("node", "Ray cannot place it"),
    "TaskUnschedulableError": ("node", "Ray cannot place it"),
    "RayActorError": ("worker", "its worker process died"),
    "ActorUnavailableError": ("worker", "its worker process cannot be reached"),
    "NodeDiedError": ("worker", "its node died"),
    "WorkerCrashedError": ("worker", "its worker process died"),
    "AuthenticationError": ("cluster", "the Ray cluster does not accept this driver's token"),
    "RpcError": ("cluster", "the head of the Ray cluster does not answer"),
}
"""All others, such as a cancelled task, are faults of the code of a stage or of the runtime."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def explain(error: BaseException) -> tuple[BaseException, Fault, str]:
    """Return what a worker raised or Ray did, who is at fault, and a line about it."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    kinds = [one.__name__ for one in type(error).__mro__ if one.__module__.startswith("ray.")]
    fault, text = next(filter(None, map(_KNOWN.get, kinds)), ("fault", ""))
    lines = str(error).strip().splitlines()
    if isinstance(error, RayActorError):  # after the actor's ids, which are indented
        lines = [line for line in lines if not line.startswith("\t")][1:]
    found = one_line(" ".join(lines if text else lines[:1]))
    return error, fault, f"{text or type(error).__name__}{': ' if found else ''}{found}"


def one_line(text: str) -> str:
    """Return text of Ray's in one line: no colours, no full stop at the end, not too long."""
    line = " ".join(_ESCAPES.sub("", text).split()).rstrip(".")
    return line if len(line) <= 300 else f"{line[:300]} ..."
