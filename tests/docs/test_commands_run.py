"""Every command on every page is run as it is printed.

One shell per page, in a clone (``scene.py``) with a new home directory. A page is run by default;
``commands.py`` lists what is not, with reasons, and prints the counts.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.commands import (
    NOT_RUN,
    RUN_ELSEWHERE,
    all_commands,
    sources,
    steps_of,
)
from tests.docs.scene import Scene
from tests.pages import REPOSITORY

FIRST = ("README.md", "docs/quickstart.md")
"""Pages that start from a new clone: nothing is on the path, and there are no outputs."""


@pytest.fixture(scope="session")
def scene() -> Iterator[Scene]:
    folder = Path(tempfile.mkdtemp(prefix="pages"))
    made = Scene(folder)
    made.build()
    yield made
    shutil.rmtree(folder, ignore_errors=True)


def words_of(page: str, scene: Scene) -> dict[str, str]:
    """What stands for the placeholders of a page."""
    if page == "docs/output.md":
        return {"ID": scene.first_clip("out/demo")}
    return {}


@pytest.mark.ray
@pytest.mark.parametrize("page", sources())
def test_the_commands_of_a_page_work_as_printed(page: str, scene: Scene) -> None:
    steps = steps_of(page)
    wanted = [command for step in steps for command in step.commands if command.runs]
    if not wanted:
        return  # test_every_exemption_is_on_a_page knows why
    scene.reset(outputs=page not in FIRST)
    environment = scene.environment(installed=page not in FIRST)
    done = scene.run(page, steps, environment, words_of(page, scene))
    failed = [command for command in wanted if str(command) not in done.finished]
    assert not failed, f"{failed[0]}: {failed[0].text}\n{done.printed}"


def test_every_exemption_is_on_a_page() -> None:
    printed = {command.key for command in all_commands()}
    assert not {*NOT_RUN, *RUN_ELSEWHERE} - printed, "no page prints these any more"
    assert not {*NOT_RUN} & {*RUN_ELSEWHERE}
    for test in RUN_ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (REPOSITORY / file).read_text(), f"there is no {test}"
