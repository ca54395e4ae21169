"""What Ray's exceptions mean for a job: who is at fault, and a line for people.

Classes are known by name, because versions of Ray have different ones.
"""

import re
from collections.abc import Mapping
from enum import Enum

from ray.exceptions import RayActorError, RayTaskError


class Fault(Enum):
    INPUTS = "inputs"
    """Pixels, codes or a state are gone: they are made again."""
    NODE = "node"
    """The node cannot do the work, whatever the clip."""
    WORKER = "worker"
    """The process died. A clip is blamed if it was there alone."""
    CLUSTER = "cluster"
    """The whole cluster does not work with this driver: the run ends."""
    STAGE = "stage"
    """The code of a stage failed, or Ray was used wrongly. Blamed as a worker's death is."""


_INPUTS_LOST = "an object that it needs is gone from Ray's object store"
_KNOWN: Mapping[Fault, Mapping[str, str]] = {
    Fault.INPUTS: dict.fromkeys(
        (
            "ObjectFetchTimedOutError", "ObjectFreedError", "ObjectLostError",
            "ObjectReconstructionFailedError", "OwnerDiedError", "PlasmaObjectNotAvailable",
            "ReferenceCountingAssertionError",
        ),
        _INPUTS_LOST,
    ),
    Fault.NODE: {
        "OutOfDiskError": "the disk that Ray spills objects to is full (95 % by default): free "
        "space below Ray's folder (/tmp/ray by default) on that node, or start Ray with a larger "
        "--object-store-memory or another --object-spilling-directory",
        "ObjectStoreFullError": "Ray's object store is full: give the node a larger /dev/shm "
        "(docker run --shm-size) and start Ray with a larger --object-store-memory",
        "OutOfMemoryError": "Ray's memory monitor killed the worker because the memory of its node "
        "is nearly full: lower runtime.decode.max_actors or runtime.encode.max_actors, raise the "
        "cpus of each, or use nodes with more memory (RAY_memory_usage_threshold sets the limit)",
        "RuntimeEnvSetupError": "Ray cannot prepare the job's runtime_env there",
        "RaySystemError": "Ray itself failed there",
        "LocalRayletDiedError": "the node's raylet died",
        "ActorUnschedulableError": "Ray cannot place the worker",
        "TaskUnschedulableError": "Ray cannot place the worker",
    },
    Fault.WORKER: {
        "RayActorError": "its worker process died",
        "ActorDiedError": "its worker process died",
        "ActorUnavailableError": "its worker process cannot be reached",
        "NodeDiedError": "its node died",
        "WorkerCrashedError": "its worker process died",
    },
    Fault.CLUSTER: {
        "AuthenticationError": "the Ray cluster does not accept this driver's token",
        "RpcError": "the head of the Ray cluster does not answer",
    },
    Fault.STAGE: dict.fromkeys(
        (
            "ActorAlreadyExistsError", "ActorHandleNotFoundError", "ActorPlacementGroupRemoved",
            "AsyncioActorExit", "CrossLanguageError", "GetTimeoutError",
            "ObjectRefStreamEndOfStreamError", "OufOfBandObjectRefSerializationException",
            "PendingCallsLimitExceeded", "RayCgraphCapacityExceeded", "RayChannelError",
            "RayChannelTimeoutError", "RayDirectTransportError", "RayError", "RayTaskError",
            "StreamingGeneratorReplayInconsistentError", "TaskCancelledError",
            "TaskPlacementGroupRemoved", "UnserializableException", "UserCodeException",
        ),
        "",
    ),
}  # fmt: skip
_FAULTS = {name: (fault, text) for fault, known in _KNOWN.items() for name, text in known.items()}
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_MAX_CHARACTERS = 300


def cause_of(error: BaseException) -> BaseException:
    """Return what a worker raised, or the error itself if none did."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def fault_of(error: BaseException) -> Fault:
    """Return who is at fault for what a lease or a worker's start ended with."""
    return _decision(cause_of(error))[0]


def line_of(error: BaseException) -> str:
    """Describe an error that crossed Ray in one line, without escape codes."""
    cause = cause_of(error)
    _, text = _decision(cause)
    lines = str(cause).strip().splitlines()
    if isinstance(cause, RayActorError):  # after the actor's ids, which are indented
        lines = [line for line in lines if not line.startswith("\t")][1:]
    elif not text:
        lines = lines[:1]
    found = one_line(" ".join(lines))
    return f"{text or type(cause).__name__}{': ' if found else ''}{found}"


def one_line(text: str) -> str:
    """Return text of Ray's without line breaks and colours, and not too long."""
    line = " ".join(_ESCAPES.sub("", text).split())
    return line if len(line) <= _MAX_CHARACTERS else f"{line[:_MAX_CHARACTERS]} ..."


def _decision(error: BaseException) -> tuple[Fault, str]:
    kinds = (one for one in type(error).__mro__ if one.__module__.partition(".")[0] == "ray")
    found = (_FAULTS.get(kind.__name__) for kind in kinds)
    return next(filter(None, found), (Fault.STAGE, ""))
