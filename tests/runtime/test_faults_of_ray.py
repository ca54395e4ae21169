"""What each exception of Ray means, and that nothing of Ray's looks reaches a line for people."""

import inspect
from typing import Any

import pytest
import ray.exceptions
from ray.exceptions import RayError, RayTaskError

from tokpipe.errors import NodeTrouble
from tokpipe.runtime import trouble
from tokpipe.runtime.trouble import explain, one_line

FAULTS_OF_CODE = {
    "ActorAlreadyExistsError", "ActorHandleNotFoundError", "ActorPlacementGroupRemoved",
    "AsyncioActorExit", "CrossLanguageError", "GetTimeoutError",
    "ObjectRefStreamEndOfStreamError", "OufOfBandObjectRefSerializationException",
    "PendingCallsLimitExceeded",
    "RayTaskError",
    "TaskCancelledError", "TaskPlacementGroupRemoved", "UnserializableException",
    "UserCodeException",
}  # fmt: skip
DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: EncodeActor
\tactor_id: 83effcf7cc019fc88cea0f3c01000000
\tip: 10.0.0.1
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR."""
OUT_OF_MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "10.0.0.1, ID: dfb4) was 7.18GB used / 23.54GB limit (0.304809)\nOOM kill reason: Memory usage"
)


def raised_in_a_worker(cause: Exception) -> Exception:
    """As Ray passes it on: derived from both classes."""
    error = RayTaskError("work", "\x1b[36mray::EncodeActor.work()\x1b[39m", cause)
    found: Exception = error.as_instanceof_cause()
    return found


def test_every_exception_of_ray_has_a_decision() -> None:
    undecided = {
        name
        for name, kind in inspect.getmembers(ray.exceptions, inspect.isclass)
        if issubclass(kind, RayError)
        and kind is not RayError
        and not (trouble._KNOWN.keys() | FAULTS_OF_CODE) & {one.__name__ for one in kind.__mro__}
    }
    assert not undecided


@pytest.mark.parametrize(
    ("error", "fault", "said"),
    [
        (
            ray.exceptions.OutOfDiskError("Local disk is full"),
            "node",
            "spills objects to",
        ),
        (ray.exceptions.ObjectStoreFullError("full"), "node", "enlarge /dev/shm"),
        (ray.exceptions.OutOfMemoryError(OUT_OF_MEMORY), "node", "7.18GB used / 23.54GB"),
        (ray.exceptions.RuntimeEnvSetupError("no pip"), "node", "no pip"),
        (ray.exceptions.RaySystemError("bad"), "node", "Ray itself failed: System error: bad"),
        (ray.exceptions.ActorUnschedulableError("labels"), "node", "cannot place"),
        (ray.exceptions.RayActorError(error_msg=DIED), "worker", "type: SYSTEM_ERROR"),
        (ray.exceptions.ActorUnavailableError("reset", None), "worker", "cannot be reached"),
        (ray.exceptions.WorkerCrashedError(), "worker", "its worker process died"),
        (ray.exceptions.ObjectLostError("a1", None, ""), "inputs_lost", "object store"),
        (ray.exceptions.OwnerDiedError("a1", None, ""), "inputs_lost", "object store"),
        (ray.exceptions.RpcError("down"), "cluster", "the head of the Ray cluster"),
        (ValueError("\x1b[31mred\x1b[0m\nsecond line"), "fault", "ValueError: red"),
        (NodeTrouble("disk full"), "fault", "disk full"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize("wrap", [lambda error: error, raised_in_a_worker], ids=["bare", "task"])
def test_an_error_is_blamed_on_the_right_part_in_one_plain_line(
    error: Exception, fault: str, said: str, wrap: Any
) -> None:
    cause, found, line = explain(wrap(error))
    assert cause is error
    assert found == fault
    assert said in line
    assert "\n" not in line
    assert "\x1b" not in line
    assert "actor_id" not in line


def test_a_class_of_the_same_name_elsewhere_is_not_rays() -> None:
    class OutOfDiskError(Exception):
        pass

    assert explain(raised_in_a_worker(OutOfDiskError()))[1] == "fault"


def test_a_long_text_of_rays_becomes_a_short_line() -> None:
    text = one_line("\x1b[36m(raylet)\x1b[0m " + "many\nlines " * 1000)
    assert text.startswith("(raylet) many lines")
    assert len(text) < 400
