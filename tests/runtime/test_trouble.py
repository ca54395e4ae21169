"""What each exception of Ray means, and that nothing of Ray's looks reaches a line for people."""

import inspect
from typing import Any

import pytest
import ray.exceptions
from ray.exceptions import RayError, RayTaskError

from tokpipe.errors import NodeTrouble
from tokpipe.runtime import trouble
from tokpipe.runtime.trouble import Fault, fault_of, line_of, one_line

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
    classes = {
        name
        for name, kind in inspect.getmembers(ray.exceptions, inspect.isclass)
        if issubclass(kind, RayError)
    }
    assert classes <= trouble._FAULTS.keys(), "a new version of Ray: decide"


@pytest.mark.parametrize(
    ("error", "fault", "said"),
    [
        (ray.exceptions.OutOfDiskError("Local disk is full"), Fault.NODE, "spills objects to is"),
        (ray.exceptions.ObjectStoreFullError("full"), Fault.NODE, "larger /dev/shm"),
        (ray.exceptions.OutOfMemoryError(OUT_OF_MEMORY), Fault.NODE, "7.18GB used / 23.54GB"),
        (ray.exceptions.RuntimeEnvSetupError("no pip"), Fault.NODE, "no pip"),
        (ray.exceptions.RaySystemError("bad"), Fault.NODE, "Ray itself failed there"),
        (ray.exceptions.ActorUnschedulableError("labels"), Fault.NODE, "cannot place"),
        (ray.exceptions.RayActorError(error_msg=DIED), Fault.WORKER, "type: SYSTEM_ERROR"),
        (ray.exceptions.ActorUnavailableError("reset", None), Fault.WORKER, "cannot be reached"),
        (ray.exceptions.WorkerCrashedError(), Fault.WORKER, "its worker process died"),
        (ray.exceptions.ObjectLostError("a1", None, ""), Fault.INPUTS, "object store"),
        (ray.exceptions.OwnerDiedError("a1", None, ""), Fault.INPUTS, "object store"),
        (ray.exceptions.RpcError("down"), Fault.CLUSTER, "the head of the Ray cluster"),
        (ValueError("\x1b[31mred\x1b[0m\nsecond line"), Fault.STAGE, "ValueError: red"),
        (NodeTrouble("disk full"), Fault.STAGE, "disk full"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize("wrap", [lambda error: error, raised_in_a_worker], ids=["bare", "task"])
def test_an_error_is_blamed_on_the_right_part_in_one_plain_line(
    error: Exception, fault: Fault, said: str, wrap: Any
) -> None:
    line = line_of(wrap(error))
    assert fault_of(wrap(error)) is fault
    assert said in line
    assert "\n" not in line
    assert "\x1b" not in line
    assert "actor_id" not in line


def test_a_class_of_the_same_name_elsewhere_is_not_rays() -> None:
    class OutOfDiskError(Exception):
        pass

    assert fault_of(raised_in_a_worker(OutOfDiskError())) is Fault.STAGE


def test_a_long_text_of_rays_becomes_a_short_line() -> None:
    text = one_line("\x1b[36m(raylet)\x1b[0m " + "many\nlines " * 1000)
    assert text.startswith("(raylet) many lines")
    assert len(text) < 400
