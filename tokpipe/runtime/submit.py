"""Ray's job API: submits a job to a cluster, follows its driver's lines, and stops it."""

import json
import logging
import os
import shlex
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.machinery import PathFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import tokpipe
from tokpipe.config.base import variables_of
from tokpipe.config.job import JobConfig
from tokpipe.config.load import parse_job, project_root
from tokpipe.config.strict_yaml import read_mapping
from tokpipe.config.tokenizer import CustomConfig
from tokpipe.errors import ConfigError, RuntimeFault
from tokpipe.runtime import cluster, submitted
from tokpipe.runtime.dispatch.protocol import STOP_GRACE_S
from tokpipe.telemetry.redact import holds_secret, redact

STARTER = "start_tokpipe.py"


class Package:
    """A job, ready to be sent as it was checked: with values of variables, absolute paths, and the
    settings of its checkpoint. No other file of the project is sent. Holds no secret."""

    def __init__(
        self, path: Path, job: JobConfig, options: Sequence[str], asked: Iterable[str]
    ) -> None:
        """``options`` are those of ``tokpipe run``. ``asked``: variables to set for the driver and
        the workers, each as NAME or NAME=VALUE; secrets are rejected."""
        for name in variables_of(read_mapping(path.read_bytes(), str(path))):
            if name in os.environ and holds_secret(name, os.environ[name]):
                raise _secret(f"{path}: ${{{name}}}")
        if job.runtime.cluster != "auto":
            where = f"runtime.cluster: {job.runtime.cluster}"
            raise ConfigError(f"{where}: leave it out, and name the cluster with --address")
        self.name, self.job, self.options = path.name, job, options
        self.text = _resolved(path, job)  # YAML
        self.code = dict(_code_of(path, job))  # Of a custom tokenizer, by place in the package
        self.variables = dict(map(_variable, asked))
        words = ["python", STARTER, tokpipe.__version__, self.name, *options]
        self.entrypoint = f"exec {shlex.join(words)}"  # so that signals and exit codes are its own

    def write(self, folder: Path) -> None:
        """Write everything that is sent into an empty folder."""
        (folder / self.name).write_text(self.text, encoding="utf-8")
        shutil.copyfile(submitted.__file__, folder / STARTER)
        for place, path in self.code.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, folder / place, ignore=_not_code)
            else:
                shutil.copyfile(path, folder / place)


def _variable(asked: str) -> tuple[str, str]:
    name, given, value = asked.partition("=")
    if not given and name not in os.environ:
        raise ConfigError(f"--env {name}: the variable is not set here: set it, or leave it out")
    value = value if given else os.environ[name]
    if holds_secret(name, value):
        raise _secret(f"--env {name}")
    if "$" in value:
        raise ConfigError(f"--env {name}: Ray would expand the $ in its value: set it on the nodes")
    return name, value


def _secret(place: str) -> ConfigError:
    found = "is secret by its name or its value, and Ray stores and shows what is submitted"
    do = "Nothing was sent: set it on the nodes before `ray start`, or use an instance role"
    return ConfigError(f"{place} {found}. {do}")


def _resolved(path: Path, job: JobConfig) -> str:
    """Return the job as text that is read as the same job in any environment."""
    sections = job.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
    with suppress(ConfigError):
        if parse_job(text, name=str(path), root=Path("/"), environ={}) == job:
            return text
    found = f"{path}: a URI contains ${{...}} after variables were replaced"
    why = "so the cluster would replace it again: set the variable to its final value"
    raise ConfigError(f"{found}, {why}")


def _code_of(path: Path, job: JobConfig) -> Iterator[tuple[str, Path]]:
    """Yield the module or package of a custom tokenizer, unless it is installed or not here."""
    if not isinstance(job.tokenizer, CustomConfig):
        return
    folders = [*sys.path, str(project_root(path)), str(path.resolve().parent)]
    inside = ""
    for part in job.tokenizer.implementation.partition(":")[0].split("."):
        if (spec := PathFinder.find_spec(part, folders)) is None:
            return
        places = spec.submodule_search_locations
        if spec.origin is not None:
            code = Path(spec.origin) if places is None else Path(spec.origin).parent
            in_site = {"site-packages", "dist-packages"} & {*code.parts}
            is_own = not in_site and not code.is_relative_to(sysconfig.get_path("stdlib"))
            if is_own and code.exists():  # not in a zip file
                yield f"{inside}{code.name}", code
            return
        # Of a folder without __init__.py, only what is named in it is sent.
        folders, inside = [*(places or ())], f"{inside}{part}/"


def _not_code(folder: str, names: list[str]) -> set[str]:
    """Select what is not copied: hidden files (``.env``, ``.git``), caches, links to folders."""
    paths = {name: Path(folder, name) for name in names}
    links = {name for name, path in paths.items() if path.is_symlink() and not path.is_file()}
    return links | shutil.ignore_patterns(".*", "__pycache__")(folder, names)


REQUEST_TIMEOUT_S = 60.0
RETRY_S = 2.0
LOST_S = 300.0  # Following ends when the cluster has been out of reach for this long
NUM_EARLIER_LINES = 20  # Lines to show of a driver that was already running
KILL_AFTER_S = int(STOP_GRACE_S) + 120  # When Ray kills a stopped driver; by default 3 s, too early

for _module in ("modules.dashboard_sdk", "modules.job.sdk"):  # each sets INFO for itself
    logging.getLogger(f"ray.dashboard.{_module}").setLevel(logging.WARNING)
logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)


class _Client(JobSubmissionClient):
    """With a time limit for each request."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=REQUEST_TIMEOUT_S, **options)


_TROUBLE = (OSError, RayError, RuntimeError, ValueError, KeyError)
"""What Ray's client raises when a cluster does not answer as one."""


class Submission(NamedTuple):
    """The newest driver of an output on a cluster; drivers of one output have numbered ids."""

    name: str
    number: int
    info: JobDetails | None  # None if there was no driver yet, which is number 0

    @property
    def id(self) -> str:
        return f"{self.name}-{self.number}"

    @property
    def is_live(self) -> bool:
        return self.info is not None and not self.info.status.is_terminal()

    @property
    def was_stopped(self) -> bool:
        return self.info is not None and self.info.status == JobStatus.STOPPED

    @property
    def exit_code(self) -> int:
        """The exit code of a driver that has ended, 128 + n if signal n ended it."""
        assert self.info is not None
        if self.was_stopped:
            return 128 + signal.SIGTERM
        code = self.info.driver_exit_code
        if code is None or code == 127:  # There was no `python` on the PATH of `ray start`
            found = f"the driver did not start, or it died with its node: {self.info.message}"
            do = "Once the cluster works, run the same command to resume"
            raise RuntimeFault(f"{self.id}: {found}. {do}")
        return code if code >= 0 else 128 - code


class Cluster:
    """The job API of a running Ray cluster."""

    def __init__(self, address: str | None) -> None:
        """Connect to a dashboard (``http://HEAD:8265``) or ``HEAD:6379``; by default, as Ray."""
        names = "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"
        address = next(filter(None, [address, *map(os.environ.get, names)]), None)
        self.address = address or "this machine"
        cluster.check_address(self.address, self.address)
        # Ray would prefer the variables to the address that it is passed.
        saved = {name: os.environ.pop(name) for name in names if name in os.environ}
        try:
            advice = "Nothing was started. Use the dashboard's address, --address http://HEAD:8265"
            with self._faults("no Ray cluster answers", advice):
                self._client = _connect(address)
        finally:
            os.environ.update(saved)
        self.address = self._client.get_address()

    def newest(self, package: Package) -> Submission:
        """Find the newest submission for a package's output."""
        job = package.job
        identity = [job.output.uri.rstrip("/"), job.storage.options, "--dry-run" in package.options]
        name = f"tokpipe-{sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}"
        newest = Submission(name, 0, None)
        with self._faults("looking for a running job failed"):
            while info := self._info(f"{name}-{newest.number + 1}"):
                newest = Submission(name, newest.number + 1, info)
        return newest

    def submit(self, package: Package, newest: Submission) -> Submission:
        """Submit a job after its newest submission, which has ended."""
        submission = Submission(newest.name, newest.number + 1, None)
        with self._faults("submitting failed"), TemporaryDirectory() as folder:
            package.write(Path(folder))
            variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(KILL_AFTER_S), **package.variables}
            self._client.submit_job(
                entrypoint=package.entrypoint,
                submission_id=submission.id,
                runtime_env={"working_dir": folder, "env_vars": variables},
                metadata={
                    "dataset": package.job.dataset,
                    "output": redact(package.job.output.uri),
                    "tokpipe": tokpipe.__version__,
                },
            )
        return submission

    def stop(self, submission: Submission) -> None:
        """Ask a driver to commit what is finished and end. Follow it to see how it does."""
        with self._faults("stopping failed"):
            self._client.stop_job(submission.id)

    def follow(self, submission: Submission, *, from_start: bool) -> Iterator[str | Submission]:
        """Yield the driver's lines, of earlier ones only the last few unless ``from_start``, and
        last the submission as it ended. The log is read anew each time: long connections break."""
        num_seen = 0 if from_start else None
        in_contact, read_s, was_over = time.monotonic(), 0.0, False
        while True:
            try:
                info = self._info(submission.id)
            except _TROUBLE as error:
                if time.monotonic() - in_contact > LOST_S:
                    found = f"has not answered for {LOST_S / 60:.0f} minutes: {error}"
                    do = "If the head runs, so does the job; run the same command to follow it"
                    raise RuntimeFault(f"{self.address} {found}. {do}") from error
            else:
                if info is None:
                    found = f"no longer knows {submission.id}, because its head was restarted"
                    do = "Committed work is safe; run the same command to resume"
                    raise RuntimeFault(f"{self.address} {found}. {do}")
                in_contact, is_over, is_read = time.monotonic(), info.status.is_terminal(), False
                with suppress(*_TROUBLE):  # its node may be gone
                    *lines, rest = self._client.get_job_logs(submission.id).split("\n")
                    lines += [rest] * (is_over and rest != "")
                    if num_seen is None:
                        num_seen = max(0, len(lines) - NUM_EARLIER_LINES)
                    yield from lines[num_seen:]
                    num_seen, is_read = len(lines), True
                read_s = time.monotonic() - in_contact
                if is_over and (is_read or was_over):
                    yield submission._replace(info=info)
                    return
                was_over = is_over
            time.sleep(max(RETRY_S, 5 * read_s))  # the longer, the longer the log is

    def _info(self, submission_id: str) -> JobDetails | None:
        try:
            return self._client.get_job_info(submission_id)
        except RuntimeError as error:
            if str(error).startswith("Request failed with status code 404"):
                return None
            raise

    @contextmanager
    def _faults(self, what: str, advice: str = "") -> Iterator[None]:
        try:
            yield
        except cluster.AuthenticationError as error:
            raise cluster.authentication_fault(self.address) from error
        except _TROUBLE as error:
            raise RuntimeFault(f"{self.address}: {what}: {error}. {advice}".rstrip()) from error


def _connect(address: str | None) -> _Client:
    if address in (None, "auto"):
        cluster.use_token_of_this_machine()
        return _Client(None)
    if "://" in address:
        return _Client(address)
    cluster.check_reachable(address)
    try:
        return _Client(f"http://{address}")
    except ConnectionError:  # not the dashboard, so perhaps the cluster's own address
        return _Client(address)
