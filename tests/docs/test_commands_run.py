"""Every command on every page is run as it is printed.

One shell per page, in a clone (``scene.py``) with a new home directory. A page is run by default;
``commands.py`` lists what is not, with reasons, and prints the counts.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    Command,
    Step,
    all_commands,
    commands_of_code,
    other_blocks,
    sources,
    steps_of,
)
from tests.docs.dataset import webvid
from tests.docs.props import PROPS
from tests.docs.scene import Scene
from tests.pages import REPOSITORY, Block
from tests.ray_head import Head, running_head

FIRST = ("README.md", "docs/quickstart.md")
"""Pages that start from a new clone: nothing is on the path, and there are no outputs."""


CLUSTER = r"\b(ray job|tokpipe submit|ray status)\b"
"""Commands that need a running cluster."""
HTTP = "http://"


def pages_with(*, slow: bool) -> list[str]:
    """The pages with commands that are slow, or with others."""
    found = [command for command in all_commands() if command.runs and command.is_slow == slow]
    return list(dict.fromkeys(command.page for command in found))


@pytest.fixture(scope="session")
def scene() -> Iterator[Scene]:
    folder = Path(tempfile.mkdtemp(prefix="pages"))
    made = Scene(folder)
    try:
        made.build()
        yield made
    finally:
        made.end_processes()
        shutil.rmtree(folder, ignore_errors=True)


def words_of(page: str, scene: Scene) -> dict[str, str]:
    """What stands for the placeholders of a page."""
    if page == "docs/output.md":
        return {"ID": scene.first_clip("out/demo")}
    return {}


@contextmanager
def cluster(scene: Scene, variables: dict[str, str], *, token: bool) -> Iterator[Head]:
    """A cluster as the user of ``scene`` would start it in the clone, where Ray looks for it.

    With ``token`` it asks for the one in the user's ``~/.ray``.
    """
    environment = scene.environment(installed=True) | variables
    if token:
        scene.bash("ray get-auth-token --generate")
        environment["RAY_AUTH_MODE"] = "token"
    ray, folder = scene.scripts / "ray", scene.folder / "ray"
    with running_head(scene.clone, environment, ray=ray, folder=folder) as head:
        yield head


def run_page(
    page: str,
    scene: Scene,
    request: pytest.FixtureRequest,
    *,
    slow: bool = False,
    token: bool = True,
) -> None:
    """Run the commands of a page, with those that are slow or without them.

    A cluster that it needs asks for a ``token``, or does not.
    """
    steps = [
        replace(step, commands=tuple(c for c in step.commands if c.runs and slow >= c.is_slow))
        for step in steps_of(page)
    ]
    commands = [command for step in steps for command in step.commands]
    assert commands
    scene.reset(outputs=page not in FIRST)
    if page in PROPS:
        PROPS[page](scene)
    environment = scene.environment(installed=page not in FIRST)
    with ExitStack() as stack:
        words = words_of(page, scene)
        text = "\n".join(command.key for command in commands)
        if re.search(f"s3://|jobs/webvid|{CLUSTER}", text):
            server = request.getfixturevalue("s3_server")
            store, job = server.environment(), webvid(scene, server)
            environment |= store if "export OUTPUT=" in text else store | job
        if re.search(CLUSTER, text):
            if token and "RAY_AUTH_MODE" not in text:
                environment["RAY_AUTH_MODE"] = "token"
            # Ray's own command needs the variables of the job on the head.
            variables = store | job if "ray job submit -- " in text else store
            head = stack.enter_context(cluster(scene, variables, token=token))
            words |= dict.fromkeys(("HEAD:8265", "127.0.0.1:8265"), head.url.removeprefix(HTTP))
        done = scene.run(steps, environment, words)
        failed = [command for command in commands if str(command) not in done.finished]
        log = scene.folder / "ray/out.log"
        more = log.read_text() if log.exists() else ""
        assert not failed, f"{failed[0]}: {failed[0].text}\n{done.printed}\n{more}"
        assert done.exit_code == 0, f"{page}\n{done.printed}"


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.parametrize("page", pages_with(slow=False))
def test_the_commands_of_a_page_work_as_printed(
    page: str, scene: Scene, request: pytest.FixtureRequest
) -> None:
    run_page(page, scene, request)


@pytest.mark.ray
@pytest.mark.s3
def test_a_cluster_without_tokens_needs_no_other_commands(
    scene: Scene, request: pytest.FixtureRequest
) -> None:
    run_page("jobs/webvid.yaml", scene, request, slow=True, token=False)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with(slow=True))
def test_the_slow_commands_of_a_page_work_too(
    page: str, scene: Scene, request: pytest.FixtureRequest
) -> None:
    run_page(page, scene, request, slow=True)


def test_every_exemption_is_on_a_page_and_every_other_block_has_a_test() -> None:
    printed = {command.key for command in all_commands()}
    listed = [*NOT_RUN, *RUN_ELSEWHERE, *SLOW]
    assert not {*listed, *STOPPED} - printed - {*sources(), "tokpipe/cli/"}, (
        "no page prints these any more"
    )
    assert len({*listed}) == len(listed), "a command is in two tables"
    blocks = {(block.page, block.language) for block in other_blocks()}
    assert blocks == BLOCKS.keys() | ONLY_PARSED.keys()
    assert not BLOCKS.keys() & ONLY_PARSED.keys()
    for (page, _), test in BLOCKS.items():
        assert page in (REPOSITORY / test.partition("::")[0]).read_text(), f"{test} reads others"
    for test in {*RUN_ELSEWHERE.values(), *BLOCKS.values()}:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (REPOSITORY / file).read_text(), f"there is no {test}"


PAGE = """\
echo one    # a comment
cat > file.txt <<END
two # lines
END

for word in three four; do
    echo $word
done
export FIVE=5
echo "$FIVE" \\
    CLIP
ls missing | cat
echo never
"""


def test_commands_are_split_continue_each_other_and_end_at_the_first_that_fails(
    tmp_path: Path,
) -> None:
    commands = commands_of_code("page.md", 1, PAGE)
    assert [command.line for command in commands] == [1, 2, 6, 9, 10, 12, 13]
    assert commands[0].key == "echo one"
    assert commands[2].text == "for word in three four; do\n    echo $word\ndone"
    scene = Scene(tmp_path)
    scene.clone.mkdir()
    step = Step(Block("page.md", 0, "sh", None, PAGE), tuple(commands))
    done = scene.run([step], {"PATH": os.environ["PATH"]}, {"CLIP": "six"})
    assert done.finished == {f"page.md:{line}" for line in (1, 2, 6, 9, 10)}
    assert done.exit_code != 0
    printed = [line for line in done.printed.splitlines() if " s: page.md:" not in line]
    assert printed[:4] == ["one", "three", "four", "5 six"]
    assert "never" not in printed
    assert (scene.clone / "file.txt").read_text() == "two # lines\n"


@pytest.mark.parametrize(("number", "is_right"), [(130, True), (1, False)])
def test_a_long_command_gets_ctrl_c_on_its_condition(
    number: int, is_right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"trap 'exit {number}' INT; touch begun; while true; do sleep 0.1; done"
    monkeypatch.setitem(STOPPED, text, "ls begun")
    scene = Scene(tmp_path)
    scene.clone.mkdir()
    step = Step(Block("page.md", 0, "sh", None, text), (Command("page.md", 1, text),))
    done = scene.run([step], {"PATH": os.environ["PATH"]}, {})
    assert (done.finished == {"page.md:1"}) == is_right, done.printed
