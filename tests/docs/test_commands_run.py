"""Every command on every page is run as it is printed.

One shell per page, in a clone (``scene.py``) with a new home directory. A page is run by default;
``commands.py`` lists what is not, with reasons, and prints the counts.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.docs.commands import (
    BLOCKS,
    NOT_RUN,
    ONLY_PARSED,
    RUN_ELSEWHERE,
    SLOW,
    STOPPED,
    all_commands,
    other_blocks,
    sources,
    steps_of,
)
from tests.docs.props import PROPS
from tests.docs.scene import Scene
from tests.docs.services import running_head, webvid
from tests.pages import REPOSITORY

FIRST = ("README.md", "docs/quickstart.md")
"""Pages that start from a new clone: nothing is on the path, and there are no outputs."""


CLUSTER = re.compile(r"\b(ray job|tokpipe submit|ray status)\b")
"""Commands that need a running cluster."""


@pytest.fixture(scope="session")
def scene() -> Iterator[Scene]:
    folder = Path(tempfile.mkdtemp(prefix="pages"))
    try:
        made = Scene(folder)
        made.build()
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def words_of(page: str, scene: Scene) -> dict[str, str]:
    """What stands for the placeholders of a page."""
    if page == "docs/output.md":
        return {"ID": scene.first_clip("out/demo")}
    return {}


def run_page(page: str, scene: Scene, request: pytest.FixtureRequest, *, slow: bool) -> None:
    """Run the commands of a page, with those that are slow or without them."""
    steps = [
        replace(step, commands=tuple(c for c in step.commands if c.runs and slow >= c.is_slow))
        for step in steps_of(page)
    ]
    commands = [command for step in steps for command in step.commands]
    if not commands:
        return
    scene.reset(outputs=page not in FIRST)
    PROPS.get(page, lambda scene: None)(scene)
    environment = scene.environment(installed=page not in FIRST)
    with ExitStack() as stack:
        words = words_of(page, scene)
        if any(CLUSTER.search(command.key) for command in commands):
            server = request.getfixturevalue("s3_server")
            webvid(scene, server)
            environment |= server.environment()
            head = stack.enter_context(running_head(scene, server, token=True))
            words["HEAD:8265"] = head
        done = scene.run(steps, environment, words)
    failed = [command for command in commands if str(command) not in done.finished]
    assert not failed, f"{failed[0]}: {failed[0].text}\n{done.printed}"


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.parametrize("page", sources())
def test_the_commands_of_a_page_work_as_printed(
    page: str, scene: Scene, request: pytest.FixtureRequest
) -> None:
    run_page(page, scene, request, slow=False)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "page", sorted({command.page for command in all_commands() if command.is_slow})
)
def test_the_slow_commands_of_a_page_work_too(
    page: str, scene: Scene, request: pytest.FixtureRequest
) -> None:
    run_page(page, scene, request, slow=True)


def test_every_exemption_is_on_a_page_and_every_other_block_has_a_test() -> None:
    printed = {command.key for command in all_commands()}
    tables = (NOT_RUN, RUN_ELSEWHERE, SLOW, STOPPED)
    listed = [key for table in tables for key in table]
    assert not {*listed} - printed, "no page prints these any more"
    assert len({*listed}) == len(listed), "a command is in two tables"
    blocks = {(block.page, block.language) for block in other_blocks()}
    assert blocks == BLOCKS.keys() | ONLY_PARSED.keys()
    assert not BLOCKS.keys() & ONLY_PARSED.keys()
    for (page, _), test in BLOCKS.items():
        assert page in (REPOSITORY / test.partition("::")[0]).read_text(), f"{test} reads others"
    for test in {*RUN_ELSEWHERE.values(), *BLOCKS.values()}:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (REPOSITORY / file).read_text(), f"there is no {test}"
