"""Every block of code on every page is valid.

``test_commands_run.py`` runs the commands of all pages, and ``commands.py`` names the tests that
run other blocks. All blocks, run or not, are checked here: commands by the real argument parsers,
job sections by the models, Python by its imports. CONTRIBUTING.md states the rule.
"""

import argparse
import ast
import csv
import importlib
import inspect
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.pages import REPOSITORY, Block, blocks_of, commands_of, name_of, pages
from tokpipe.cli import main
from tokpipe.config import JobConfig, parse_job
from tokpipe.reader.compose import Template

BLOCKS = [block for page in pages() for block in blocks_of(name_of(page))]
WHOLE_JOB = yaml.safe_load((REPOSITORY / "tests/config/native_job.yaml").read_text())
LANGUAGES = {"sh", "python", "sql", "yaml", "csv", "jsonl", "diff", "text", ""}
"""``text`` and none are for output and drawings."""
WITHOUT_CHECK = {"cd", "cp", "echo", "export", "git", "jq", "mkdir", "tar"}
"""Other programs, whose arguments are not checked, except that their files exist."""


def of(*languages: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language in languages]


def test_every_block_is_in_a_language_that_is_checked() -> None:
    assert not [f"{block}: {block.language}" for block in BLOCKS if block.language not in LANGUAGES]
    for page in pages():
        for token in MarkdownIt("commonmark").parse(page.read_text()):
            if token.type == "code_block":
                assert not re.match(r"(\S*/)?(tokpipe|python|make|ray) ", token.content), (
                    f"{name_of(page)}: fence this as sh, so that it is checked: {token.content}"
                )


class Parsed(Exception):
    """The arguments of a command were accepted, and it was not run."""


def parse(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ``main`` of a module parse its arguments, but not run."""
    real = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        raise Parsed(real(self, *given, **named))

    def run(parsed: argparse.Namespace) -> int:
        raise Parsed(parsed)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patch.setattr("tokpipe.cli.command.exit_code_of", run)
        patch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(Parsed):
            importlib.import_module(module).main()


def check(words: list[str], page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless a command is valid as it is written."""
    program, arguments = Path(words[0]).name, words[1:]
    made_here = {block.title for block in blocks_of(page)} | {"jobs/mine.yaml", "jobs/videos.yaml"}
    for word in arguments:
        if re.match(r"(benchmarks|docs|examples|infra|jobs|tests|tokpipe)/", word):
            path = word.partition("::")[0]
            assert path in made_here or (REPOSITORY / path).exists(), f"there is no {word}"
    match [program, *arguments]:
        case ["tokpipe", *_]:
            parse("tokpipe.cli", arguments, monkeypatch)
        case ["python", "-m", "pytest" | "mypy", *_]:
            pass  # their files were looked for above
        case ["python", "-m", module, *rest]:
            found = importlib.import_module(module)
            if hasattr(found, "__path__"):
                module = f"{module}.__main__"
                found = importlib.import_module(module)
            if re.search("ArgumentParser|import main|tokpipe.cli", inspect.getsource(found)):
                parse(module, rest, monkeypatch)
            else:
                assert not rest, f"{module} takes no arguments"
                assert "__main__" in inspect.getsource(found), f"{module} does nothing when it runs"
        case ["python", script, *_]:
            assert (REPOSITORY / script).is_file()
        case ["make", *targets]:
            rules = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(rules)
        case ["ray", "job", "submit", *rest]:
            check(rest[rest.index("--") + 1 :], page, monkeypatch)
        case ["ruff", "check" | "format", *_] | ["ray", "get-auth-token" | "start", *_]:
            pass
        case ["hf", verb, *rest]:
            hf = [sys.executable, "-m", "huggingface_hub.cli.hf", verb, "--help"]
            shown = subprocess.run(hf, capture_output=True, text=True, check=True).stdout
            assert all(word in shown for word in rest if word.startswith("--"))
        case ["prometheus", config]:
            assert yaml.safe_load((REPOSITORY / config.partition("=")[2]).read_text())
        case ["pip", "install", *what] | ["uv", "pip", "install", *what]:
            text = (REPOSITORY / "pyproject.toml").read_text()
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(what)):
                assert re.search(rf"^{extra} = \[", text, re.MULTILINE)
        case _:
            assert program in WITHOUT_CHECK, f"nothing checks {program}: add it here"


@pytest.mark.parametrize("block", of("sh"))
def test_commands_are_accepted_by_their_programs(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = commands_of(block.code)
    assert commands
    for words in commands:
        check(words, block.page, monkeypatch)


def test_a_misspelt_command_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for line in (
        "tokpipe audit out/demo --dpeth sizes",
        "tokpipe runn jobs/demo.yaml",
        "python -m tokpipe.run",
        "ray job submit -- python -m tokpipe.run jobs/demo.yaml --no-such",
        "make demos",
        "tokpipe run jobs/nosuch.yaml",
        "frobnicate x",
    ):
        with pytest.raises((AssertionError, SystemExit)):
            check(commands_of(line)[0], "README.md", monkeypatch)


@cache
def help_of(verb: str) -> str:
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0, f"there is no verb {verb}"
    return printed.getvalue()


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_commands_in_a_sentence_name_verbs_and_options_that_exist(page: Path) -> None:
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        for inner in token.children or []:
            if inner.type == "code_inline" and (
                command := re.match(r"tokpipe ([a-z]+)\b(.*)", inner.content)
            ):
                known = help_of(command[1])
                for option in re.findall(r"--[a-z-]+", command[2]):
                    assert option in known, f"{name_of(page)}: `{inner.content}`"


@pytest.mark.parametrize("block", of("yaml"))
def test_yaml_is_a_job_or_part_of_one_or_a_template(block: Block, tmp_path: Path) -> None:
    given = yaml.safe_load(block.code)
    if "template" in given:
        (tmp_path / "template.yaml").write_text(block.code)
        Template.load(tmp_path / "template.yaml")
        return
    if "apiVersion" in given:  # the rest is checked by Kubernetes
        assert {"kind", "metadata", "spec"} <= set(given)
        return
    assert set(given) <= set(JobConfig.model_fields), "no section of a job file has these names"

    def read(uri: str, options: object) -> bytes:
        return yaml.safe_dump(WHOLE_JOB["tokenizer"]).encode()

    text = yaml.safe_dump({**WHOLE_JOB, **given})
    parse_job(text, name=str(block), root=REPOSITORY, environ={}, read=read)


@pytest.mark.parametrize("block", of("python"))
def test_python_compiles_and_its_imports_exist(block: Block) -> None:
    tree = ast.parse(block.code, filename=str(block))
    beside = {one.title for one in BLOCKS if one.page == block.page}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.py" in beside:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("block", of("csv", "jsonl"))
def test_tables_parse(block: Block) -> None:
    lines = block.code.splitlines()
    if block.language == "csv":
        assert len({len(row) for row in csv.reader(lines)}) == 1
    else:
        assert all(isinstance(json.loads(line), dict) for line in lines)
