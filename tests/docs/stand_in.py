"""Plays a program that needs a service: checks the files that its command line names.

    python stand_in.py PROGRAM [ARGUMENT ...]

Prints the command, and fails if a file is missing or malformed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml


def main(program: str, arguments: list[str]) -> None:
    print("stand-in:", program, *arguments)
    match [program, *arguments]:
        case ["sbatch", *rest]:
            files = [word for word in rest if not word.startswith("-")]
            script = Path(files[0])
            subprocess.run(["bash", "-n", script], check=True)
            assert "#SBATCH" in script.read_text(), f"{script} is not a batch script"
        case ["docker", "build", *rest]:
            _check_image(Path(rest[rest.index("-f") + 1]), Path(rest[-1]))
        case ["prometheus", *options]:
            assert all(option.startswith("--") for option in options), "it takes no arguments"
        case ["jq", *_, file]:
            assert all(json.loads(line) for line in Path(file).read_text().splitlines())
        case ["ray", _, config, *_]:
            assert yaml.safe_load(Path(config).read_text())["cluster_name"]
    for word in arguments:
        path = word.rpartition("=")[2] if word.startswith("-") else word
        if re.fullmatch(r"[\w./-]+\.(ya?ml|json)", path):
            assert [*yaml.safe_load_all(Path(path).read_text())], f"{path} is empty"


def _check_image(recipe: Path, context: Path) -> None:
    for line in recipe.read_text().splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not any(word.startswith("--from") for word in words):
            for pattern in [word for word in words[1:-1] if not word.startswith("--")]:
                assert [*context.glob(pattern)], f"{recipe}: there is no {pattern} in {context}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
