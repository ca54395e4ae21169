"""The process that measures: runs sections and prints each finding as a line of JSON."""

import importlib
import json
import sys
import time
import traceback
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.gpu.record import Left
from benchmarks.gpu.sections import SECTIONS, Section
from benchmarks.gpu.setting import Setting
from tokpipe.models.process import make_repeatable


def main(order: dict[str, Any]) -> None:
    if not order["dry_run"] and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here: run it where there is one, or with --dry-run")
    device = torch.device("cpu" if order["dry_run"] else "cuda")
    setting = Setting(device, values=order["values"], share=lambda some: say("value", some))
    make_repeatable()  # as in the encode stage
    if order["dry_run"]:
        torch.set_num_threads(1)  # more cost time where shapes are tiny
    for section in SECTIONS:
        if section.name in order["sections"]:
            run(section, setting)


def run(section: Section, setting: Setting) -> None:
    """One section, until it is done, its time is used up, or it fails."""
    say("begin", section.name)
    started, state = time.monotonic(), "done"
    setting.deadline = started + section.budget_s
    try:
        module = importlib.import_module(f"benchmarks.gpu.{section.module}")
        with torch.inference_mode():
            for found in getattr(module, section.function)(setting):
                say(type(found).__name__, asdict(found))
                if setting.left_s < 0:
                    state = f"its {section.budget_s:.0f} s are used up"
                    break
    except ImportError as error:
        say("Left", asdict(Left("what follows", f"{error}: install it to measure this")))
    except Exception as error:
        traceback.print_exc()
        state = f"failed: {type(error).__name__}: {str(error)[:500]}"
    say("end", {"state": state, "seconds": round(time.monotonic() - started, 1)})
    setting.clean()


def say(kind: str, value: Any) -> None:
    print(json.dumps([kind, value]), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
