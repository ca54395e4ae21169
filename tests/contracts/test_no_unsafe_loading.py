"""Nothing that tokpipe reads can run code: no pickle or similar, no eval, no shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import tokpipe
from tokpipe.config.strict_yaml import StrictLoader

PACKAGE = Path(tokpipe.__file__).parent

MODULES = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"),
    *("jsonpickle", "pickletools", "pty", "ctypes"),
}
NAMES = {"eval", "exec", "compile", "__import__"}
METHODS = {
    *("torch.load", "torch.hub.load", "os.system", "os.popen", "numpy.fromregex"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"),
    *("pandas.read_pickle", "shutil.unpack_archive", "subprocess.getoutput"),
}
UNPACKING = {"extract", "extractall"}

EXCEPTIONS = {
    # TorchScript is a program, and NVIDIA publishes its tokenizers in no other form: the one kind
    # of weights that must be trusted. SECURITY.md says so.
    "models/tokenizers/cosmos.py": "torch.jit.load",
    # Checkpoints, weights only; classes that torch does not know become inert stubs:
    # tests/weights/test_torch_checkpoint.py attacks it.
    "weights/checkpoint.py": "torch.load weights_only",
    # Values that workers of one job exchange over Ray, which pickles them anyway.
    "runtime/actors.py": "pickle",
    # Calls one function of the C library, with a constant name.
    "models/process.py": "ctypes",
    # Keeps what decord loads from answering calls of other modules; calls nothing.
    "media/backends/decord.py": "ctypes",
}


def unsafe(source: str) -> Iterator[str]:
    """Yield each statement that could run code from data, as ``line N: what``."""
    tree = ast.parse(source)
    full = _full_names(tree)
    for node in ast.walk(tree):
        found: str | None = None
        if isinstance(node, ast.Import):
            found = next((a.name for a in node.names if a.name.split(".")[0] in MODULES), None)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found = next((n for n in names if n.split(".")[0] in MODULES or n in METHODS), None)
        elif isinstance(node, ast.Call):
            found = _unsafe_call(node, full)
        if found is not None:
            yield f"line {node.lineno}: {found}"  # type: ignore[attr-defined]


def _unsafe_call(call: ast.Call, full: dict[str, str]) -> str | None:
    name = ast.unparse(call.func)
    head, dot, rest = name.partition(".")
    name = full.get(head, head) + dot + rest
    if isinstance(call.func, ast.Name) and name in NAMES:
        return name
    if name == "torch.load":
        safe = any(
            word.arg == "weights_only" and ast.unparse(word.value) == "True"
            for word in call.keywords
        )
        return "torch.load weights_only" if safe else "torch.load of any pickle"
    if name in METHODS or name.startswith("torch.jit."):
        return name
    if isinstance(call.func, ast.Attribute) and call.func.attr in UNPACKING:
        return name
    if name == "yaml.load":
        loader = next((word.value for word in call.keywords if word.arg == "Loader"), None)
        loader = call.args[1] if loader is None and len(call.args) > 1 else loader
        if not isinstance(loader, ast.Name) or loader.id != "StrictLoader":
            return "yaml.load without StrictLoader"
    for word in call.keywords:
        is_off = isinstance(word.value, ast.Constant) and word.value.value is False
        if word.arg in ("allow_pickle", "shell", "trust_remote_code") and not is_off:
            return f"{word.arg}={ast.unparse(word.value)}"
    return None


def _full_names(tree: ast.AST) -> dict[str, str]:
    """Return the full name of each import by its local name, such as ``np`` -> ``numpy``."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({a.asname: a.name for a in node.names if a.asname})
        elif isinstance(node, ast.ImportFrom):
            names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    return names


def test_no_module_can_run_what_it_reads() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for what in unsafe(path.read_text()):
            found[str(path.relative_to(PACKAGE))] = what.partition(": ")[2]
    assert found == EXCEPTIONS


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import cloudpickle as c",
        "from dill import loads",
        "def f():\n    import marshal",
        "from torch import load",
        "from torch import load as get\nget(path)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import torch as t\nt.load(path)",
        "eval(text)",
        "exec(text)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.FullLoader)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml\nyaml.unsafe_load(text)",
        "from yaml import load\nload(text)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import os\nos.system(text)",
        "import tarfile\ntarfile.open(path).extractall(folder)",
        "archive.extract(member)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_unsafe_statements_are_found(source: str) -> None:
    assert list(unsafe(source))


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.load(text, Loader=StrictLoader)",
        "import json\njson.load(file)",
        "model.eval()",
        "import re\nre.compile(text)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import subprocess\nsubprocess.run([a, b])",
        "archive.extractfile(member)",
    ],
)
def test_safe_statements_are_accepted(source: str) -> None:
    assert not list(unsafe(source))


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system [id]", "a: !!python/name:os.system", "!!python/tuple []"],
)
def test_the_loader_only_builds_plain_values(text: str) -> None:
    assert issubclass(StrictLoader, yaml.SafeLoader)
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load(text, Loader=StrictLoader)
