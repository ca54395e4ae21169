"""Every command that the project's pages print, and what runs it.

A command is one logical line of an ``sh`` block of a Markdown page, of the comment that opens a
file below ``jobs/`` or ``infra/``, or of the docstring that opens a program in ``examples/``; or
the example in the help of a verb. ``test_commands_run.py`` runs all of them as they are printed,
except those in the tables below: ``RUN_ELSEWHERE`` names the test that runs them, ``NOT_RUN`` says
why nothing does.

    python -m tests.docs.commands    # lists what is not run here, and counts
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.pages import REPOSITORY, Block, blocks_of, name_of, pages

_SUITE = "runs tests: `make test` runs all of them, this one too"
_PYPI = "tokpipe is not on PyPI yet: tests/infra/test_wheel.py installs the wheel and its extras"
_AN_HOUR = "takes half an hour on an idle machine; "
_TRAIN = "python -m examples.train_tokenizer examples/train_tokenizer/small.yaml"
_TRAIN_ALL = "python -m examples.train_tokenizer examples/demo_tokenizer/train.yaml"
_DRAW = "python -m examples.demo_tokenizer.draw_scenes out"
_DRAW_PHOTOS = _DRAW + "/photos/1 --photos out/material --count 450 --textures 1200"
_DRAW_MORE = _DRAW + "/photos/2 --photos out/material --count 250 --textures 800 --seed 7"
_DRAW_OTHERS = _DRAW + "/scenes --count 150 --textures 300 --seed 5"

_HUB = "needs the Hugging Face Hub: tests/verbs/test_pinned_jobs.py does the same with a stand-in"

NOT_RUN: dict[str, str] = {
    "tokpipe convert hf://ai-forever/MoVQGAN/movqgan_270M.ckpt --kind movqgan "
    "-o tokenizers/movqgan": _HUB,
    "hf upload my-org/codes out/demo v1 --repo-type dataset": _HUB,
    "tokpipe audit hf://datasets/my-org/codes/v1": _HUB,
    "hf upload my-org/codes-parquet hf --repo-type dataset": _HUB,
    "pip install tokpipe": _PYPI,
    'pip install "tokpipe[run]"': _PYPI,
    'pip install "tokpipe[run]" --extra-index-url https://download.pytorch.org/whl/cpu': _PYPI,
    'uv pip install "tokpipe[run]"': _PYPI,
    "make test": _SUITE,
    "python -m pytest tests/config tests/media": _SUITE,
    "python -m pytest tests/stages -q": _SUITE,
    'python -m pytest -m "not ray and not s3" -q': _SUITE,
    "python -m pytest tests/docs -q": _SUITE,
    "python -m pytest tests/config tests/docs -q": _SUITE,
    "python -m mypy": "takes minutes, and `make test` runs it",
    "python -m benchmarks": _AN_HOUR + "tests/benchmarks runs the quick form of each benchmark",
    "python -m benchmarks encoder storage": _AN_HOUR + "tests/benchmarks runs the quick form",
    "python -m benchmarks --json benchmarks/results": _AN_HOUR + "`make bench` runs it",
    "python -m benchmarks.gpu --json gpu.json --page gpu.md": (
        "needs a GPU: tests/benchmarks/test_gpu_program.py runs it on a CPU"
    ),
    "ray start --head": "tests/ray_head.py runs it, with ports and a folder that are free",
}
"""Command -> why no test runs it."""

HERE = "tests/docs/test_commands_run.py::test_the_commands_of_a_page_work_as_printed"
_DEMO = "tests/end_to_end/test_demo.py::test_the_demo_makes_codes_that_anyone_can_read"
_WORKED_EXAMPLE = "tests/docs/test_contributing_page.py::test_the_worked_example_works"

_ROOFLINE = "tests/benchmarks/test_roofline.py::test_the_page_has_the_tables_that_are_printed"
_DRY_RUN = "tests/benchmarks/test_gpu_program.py::test_a_dry_run_has_every_section_and_no_figures"

RUN_ELSEWHERE: dict[str, str] = {
    "make demo": _DEMO,
    "python -m benchmarks.gpu --dry-run": _DRY_RUN,
    "python -m benchmarks.roofline": _ROOFLINE,
    "python -m pytest tests/media/test_media_small.py -q": _WORKED_EXAMPLE,
}
"""Command -> the test that runs it, as ``file::name``."""

SLOW: dict[str, str] = {
    "python -m benchmarks --quick": "minutes",
    "python -m benchmarks.encoder": "minutes",
    "python -m examples.demo_tokenizer.draw_scenes out/scenes": "a minute, until Ctrl-C",
    _TRAIN: "a minute, until Ctrl-C",
    "examples/demo_tokenizer/README.md": "draws and measures 24 videos",
    "tokpipe/cli/": "most are on pages, too",
    "python examples/train_transformer.py out/demo -o generated.mp4 "
    '--caption "the rabbit stretches and yawns"': "minutes; tests/examples trains for fewer steps",
    "infra/aws-spot.yaml": "docs/clusters.md submits the same job",
    "jobs/webvid.yaml": "docs/clusters.md submits it; without a token it runs in `make test`, too",
}
"""Command, page or folder -> why only `make chaos` runs it."""

STOPPED: dict[str, str] = {
    "python -m examples.demo_tokenizer.draw_scenes out/scenes": "ls out/scenes/00001.mp4",
    _TRAIN: "test -e out/train/log.jsonl",
    _TRAIN_ALL: "test -e out/train/log.jsonl",
    _DRAW_PHOTOS: "ls out/photos/1/00001.mp4",
    _DRAW_MORE: "ls out/photos/2/00001.mp4",
    _DRAW_OTHERS: "ls out/scenes/00001.mp4",
}
"""Command that takes very long -> the condition, for bash, on which it gets Ctrl-C."""

_DATA = "tests/sources/test_data_page.py::test_every_source_on_the_page_has_its_clips"
_TOKENIZERS = (
    "tests/docs/test_tokenizers_page.py"
    "::test_the_example_on_the_page_is_the_class_that_ships_and_it_runs"
)

BLOCKS: dict[tuple[str, str], str] = {
    ("CONTRIBUTING.md", "diff"): _WORKED_EXAMPLE,
    ("CONTRIBUTING.md", "python"): _WORKED_EXAMPLE,
    ("README.md", "python"): HERE,
    ("docs/data.md", "csv"): _DATA,
    ("docs/data.md", "jsonl"): _DATA,
    ("docs/data.md", "python"): _DATA,
    ("docs/data.md", "yaml"): _DATA,
    ("docs/models.md", "python"): (
        "tests/models/test_models_page.py::test_the_code_on_the_page_runs"
    ),
    ("docs/monitoring.md", "sql"): (
        "tests/end_to_end/test_monitoring.py::test_the_queries_of_the_page_work"
    ),
    ("docs/output.md", "python"): _DEMO,
    ("docs/output.md", "sql"): _DEMO,
    ("docs/output.md", "yaml"): HERE,
    ("docs/quickstart.md", "python"): HERE,
    ("docs/trainers.md", "python"): (
        "tests/reader/test_trainers_page.py::test_every_epoch_trains_on_other_clips_each_once_although_the_run_is_killed"
    ),
    ("docs/reading.md", "python"): (
        "tests/reader/test_reading_page.py::test_the_training_blocks_work"
    ),
    ("docs/sequences.md", "python"): (
        "tests/reader/test_sequences_page.py::test_the_blocks_of_the_page_work"
    ),
    ("docs/tokenizers.md", "python"): _TOKENIZERS,
}
"""(page, language) of other blocks -> the test that runs them."""

ONLY_PARSED: dict[tuple[str, str], str] = {
    ("docs/clusters.md", "yaml"): "a section of a job, for clusters with such nodes",
    ("docs/monitoring.md", "yaml"): "a section of a job, and an object for Kubernetes",
    ("docs/tokenizers.md", "yaml"): "sections of jobs, for weights that others publish",
}
"""(page, language) of blocks that ``test_code_blocks.py`` only validates -> what they are."""


@dataclass(frozen=True)
class Command:
    """One command of a page: a whole line, or several if they belong together."""

    page: str
    line: int
    text: str
    """As printed, with its comment."""

    @property
    def key(self) -> str:
        """The command without its comment."""
        return re.sub(r"(^|\s+)#(\s.*)?$", "", self.text, flags=re.MULTILINE).strip()

    @property
    def runs(self) -> bool:
        """Whether ``test_commands_run.py`` runs it, in `make test` or in `make chaos`."""
        return self.key not in RUN_ELSEWHERE and self.key not in NOT_RUN

    @property
    def is_slow(self) -> bool:
        """Whether only `make chaos` runs it."""
        return self.key in SLOW or any(self.page.startswith(name) for name in SLOW)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def commands_of_code(page: str, line: int, code: str) -> list[Command]:
    """Split shell code into commands: the fewest lines that bash takes as complete."""
    found: list[Command] = []
    lines: list[str] = []
    for number, text in enumerate(code.splitlines(), line):
        if not lines and (not text.strip() or text.lstrip().startswith("#")):
            continue
        lines.append(text)
        if _is_complete("\n".join(lines)):
            found.append(Command(page, number - len(lines) + 1, "\n".join(lines)))
            lines = []
    assert not lines, f"{page}:{line}: {lines} does not end"
    return found


@cache
def _is_complete(code: str) -> bool:
    if code.endswith("\\"):
        return False
    if not re.search(r"""["'`(){}<]|\b(do|then|case)\b""", code):
        return True
    done = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True, check=False)
    return not done.returncode and not done.stderr


@dataclass(frozen=True)
class Step:
    """What a reader of a page does next: write a file, type commands, or run Python."""

    block: Block
    commands: tuple[Command, ...] = ()


def steps_of(page: str) -> list[Step]:
    """The shell blocks, the titled blocks and, if ``BLOCKS`` says so, the Python of a page."""
    steps = []
    for block in _blocks_of(page):
        if block.language == "sh":
            commands = commands_of_code(page, block.line + 1, block.code)
            steps.append(Step(block, tuple(commands)))
        elif block.title is not None or BLOCKS.get((page, block.language)) == HERE:
            steps.append(Step(block))
    return steps


def _blocks_of(page: str) -> list[Block]:
    if page.endswith(".md"):
        return blocks_of(page)
    return [Block(page, line - 1, "sh", None, code) for line, code in _usage_in(page)]


def _usage_in(name: str) -> Iterator[tuple[int, str]]:
    """The usage examples of a program or a configuration file, with the line of each."""
    text = (REPOSITORY / name).read_text()
    if name.startswith("tokpipe/cli/"):
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXAMPLE":
                yield node.lineno, ast.literal_eval(node.value)
            for keyword in node.keywords if isinstance(node, ast.ClassDef) else ():
                if isinstance(keyword.value, ast.Constant):
                    yield node.lineno, ast.literal_eval(keyword.value)
        return
    if name.endswith(".py"):
        for number, line in enumerate((ast.get_docstring(ast.parse(text)) or "").splitlines(), 1):
            if line.startswith("    "):
                yield number, line[4:]
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("#"):
            if number == 1 or not line.strip():
                continue
            return  # the opening comment ends
        if line.startswith("#   "):
            yield number, line[4:]
        elif found := re.search(r": ((sbatch|kubectl|ray|docker) .+)", line):
            yield number, found[1]


@cache
def sources() -> tuple[str, ...]:
    """Every page and file whose commands are run."""
    files = [
        *sorted((REPOSITORY / "jobs").glob("*.yaml")),
        *sorted(path for path in (REPOSITORY / "infra").glob("*") if path.is_file()),
        *sorted((REPOSITORY / "examples").glob("*.py")),
        *sorted((REPOSITORY / "tokpipe/cli").glob("*.py")),
    ]
    names = [name_of(path) for path in [*pages(), *files]]
    return tuple(name for name in names if any(step.commands for step in steps_of(name)))


def all_commands() -> list[Command]:
    return [one for name in sources() for step in steps_of(name) for one in step.commands]


def other_blocks() -> list[Block]:
    """The blocks in other languages than ``sh``; ``text`` and none are output and drawings."""
    blocks = [block for page in pages() for block in blocks_of(name_of(page))]
    return [block for block in blocks if block.language not in ("sh", "text", "")]


def summary() -> str:
    """The counts, for people."""
    others = [(block.page, block.language) for block in other_blocks()]
    found = all_commands()
    keys = [command.key for command in found]
    elsewhere, listed, stopped = (
        sum(key in table for key in keys) for table in (RUN_ELSEWHERE, NOT_RUN, STOPPED)
    )
    slow = sum(command.is_slow for command in found)
    return (
        f"{len(found)} commands on {len(sources())} pages: {len(found) - listed} run as printed "
        f"({stopped} until Ctrl-C, {slow} by `make chaos`, {elsewhere} by other tests); "
        f"{listed} not, for the reasons above\n"
        f"{len(others)} blocks of Python, SQL, YAML and data: {sum(o in BLOCKS for o in others)} "
        f"are run by tests, {sum(o in ONLY_PARSED for o in others)} are only parsed"
    )


def main() -> None:
    for command in all_commands():
        key = command.key
        if key in NOT_RUN:
            print(f"{command}: {key}\n    not run: {NOT_RUN[key]}")
        elif key in RUN_ELSEWHERE:
            print(f"{command}: {key}\n    run by {RUN_ELSEWHERE[key]}")
        elif command.is_slow:
            why = next(why for name, why in SLOW.items() if f"{key}\n{command.page}".count(name))
            print(f"{command}: {key}\n    run by `make chaos`: {why}")
        elif key in STOPPED:
            print(f"{command}: {key}\n    until Ctrl-C at: {STOPPED[key]}")
    for (page, language), what in ONLY_PARSED.items():
        print(f"{page}: {language}\n    only parsed: {what}")
    print(summary())


if __name__ == "__main__":
    main()
