"""What a verb is, and arguments that several verbs take."""

import argparse
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokpipe.cli.output import Result
from tokpipe.config import JobConfig
from tokpipe.config.load import load_storage
from tokpipe.config.trust import NO_TRUST, Trust
from tokpipe.errors import ConfigError

if TYPE_CHECKING:
    from tokpipe.reader import Output
    from tokpipe.storage import Store


class Adder:
    """Adds arguments to a parser, or to a group of it."""

    def __init__(self, to: argparse._ActionsContainer) -> None:
        self._to, self.argument = to, to.add_argument

    def text(self, name: str, metavar: str | tuple[str, ...], what: str, **how: Any) -> None:
        self.argument(name, metavar=metavar, help=what, **how)

    def flag(self, option: str, what: str) -> None:
        self.argument(option, action="store_true", help=what)

    def count(self, option: str, default: int, what: str, least: int = 0, **how: Any) -> None:
        """Add an option that takes an integer of at least ``least``."""

        def number(text: str) -> int:
            if int(text) < least:
                raise argparse.ArgumentTypeError(f"{text} is less than {least}")
            return int(text)

        self.text(option, "N", f"{what} (default: {default})", type=number, default=default, **how)

    def one_of(self, *, required: bool = False) -> "Adder":
        """Return what adds arguments of which only one may be given."""
        return Adder(self._to.add_mutually_exclusive_group(required=required))

    def job(self) -> None:
        self.text("job", "JOB.yaml", "the job file", type=Path)

    def target(self, metavar: str, what: str, dest: str = "path") -> None:
        """Add ``-o``, the path to write to."""
        self.text("-o", metavar, what, dest=dest, type=Path, required=True)

    def output(self) -> None:
        """Add the output that a verb reads, and ``--json``."""
        self.text("output", "OUT", "the job's output, as in output.uri, or its job file")
        what = "how to reach stores: a YAML file with a storage section, unless OUT is a job file"
        self.text("--storage", "FILE", what, type=Path)
        self.json()

    def trust(self) -> None:
        """Add what the output's record may name."""
        what = "the tokenizer's weights, in place of those that the output names"
        self.text("--weights", "URI", what)
        self.flag("--trust-uris", "open the weights and sources that the output names")
        self.flag("--trust-code", "run its tokenizer if that is a class or TorchScript")

    def source(self, what: str) -> None:
        how = "contains this text, or matches it as a glob such as '*.mov'"
        what = f"{what} whose source's URI {how}; upper and lower case are the same"
        self.text("--source", "PATTERN", what)

    def json(self) -> None:
        self.flag("--json", "print JSON, for programs")

    def device(self) -> None:
        what = "cpu, cuda, ... (default: a GPU if there is one)"
        self.argument("--device", default="auto", help=what)

    def shards(self) -> None:
        what = "count codes in N shards, spread evenly; 0 for all"
        self.count("--shards", 8, what, dest="num_shards")


_SHARED = {"run", "job", "output", "storage", "json", "weights", "trust_uris", "trust_code"}


class Parsed(argparse.Namespace):
    """The arguments of a verb, and what those that several verbs take stand for."""

    weights, trust_code = None, False  # For verbs without these options

    def rest(self) -> dict[str, Any]:
        """Return those of the verb alone, by the names of the parameters that they are for."""
        return {name: value for name, value in vars(self).items() if name not in _SHARED}

    def load_job(self) -> JobConfig:
        from tokpipe.verbs.locate import load_pinned

        return load_pinned(self.job)

    def find_store(self) -> "Store":
        from tokpipe.verbs.locate import find_output

        return find_output(self.output, load_storage(self.storage))

    def open_output(self) -> "Output":
        from tokpipe.reader import Output

        return Output(self.find_store(), trust=self.trust())

    def trust(self) -> Trust:
        """Return what the user lets an output name; none of it for verbs without options."""
        from tokpipe.verbs.locate import is_job_file, load_pinned

        if "trust_uris" not in self or not getattr(self, "sample", True):
            return NO_TRUST
        if is_job_file(self.output):
            job = load_pinned(self.output)
            tokenizer, sources = job.tokenizer, tuple(job.sources)
            return Trust(self.weights, job.storage, True, tokenizer=tokenizer, sources=sources)
        return Trust(self.weights, load_storage(self.storage), self.trust_uris, self.trust_code)


class Verb:
    """One word after ``tokpipe``: the name of its class, in lower case.
    The docstring is the help text, and its first sentence the summary in the list of verbs."""

    example: str

    def __init_subclass__(cls, example: str) -> None:
        cls.example = example

    def add_arguments(self, add: Adder) -> None:
        raise NotImplementedError

    def run(self, parsed: Parsed) -> Result:
        raise NotImplementedError


def check_new_file(path: Path, *endings: str) -> None:
    """Check, before any work, that ``-o`` names a file that can be written."""
    problem = f"is a folder, or does not end in {' or '.join(endings)}"
    if not path.is_dir() and path.suffix in endings:
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                return
        except OSError as error:
            problem = f"cannot be written ({error.strerror}): choose another place"
    raise ConfigError(f"-o {path}: {problem}")


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number
