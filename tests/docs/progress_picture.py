"""``python -m tests.docs.progress_picture``: pictures of a real job's progress in a terminal.

Runs a job, stops it with Ctrl-C, and writes ``progress-COLUMNS-MOMENT.svg`` into a folder, each
from what the terminal showed. ``docs/images/progress.svg`` is ``progress-80-working.svg``.
"""

import argparse
import io
import re
import shutil
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.end_to_end.jobs import files, wait_until, write_job, write_videos
from tests.terminal import Terminal

MOMENTS = {
    "waiting": r"starting .*encode workers? \((?!0 )",
    "working": r"[45]\d\.\d% of .*\n.*limited by|[45]\d\.\d% of .*\n.*as fast as",
    "stopping": r"stopping: .* at most$",
}
"""Which frame shows each moment."""


def frames_of(recorded: str) -> list[Text]:
    """What the live lines of a terminal showed, one after another."""
    frames = re.split(r"(?:\r(?!\n)|\x1b\[2K|\x1b\[1A|\x1b\[\?25[lh])+", recorded)
    return [Text.from_ansi(one.replace("\r\n", "\n")) for one in frames if "clips/s" in one]


def record(folder: Path, columns: int) -> list[Text]:
    """Run a job on a local cluster until half of it is done, stop it, and return all frames."""
    write_videos(folder / "videos", 150, num_frames=40)
    for name in ("empty", "text"):
        (folder / f"videos/{name}.mp4").write_bytes(b"not a video" * (name == "text"))
    job = write_job(
        folder / "videos.yaml",
        files(folder / "videos"),
        str(folder / "out"),
        tokenizer={"checkpoint": "builtin://fsq-4x8x8"},
        frames={"size": [128, 128]},
        sampling={"fps": 8, "max_clip_frames": 17},
        chunking={"policy": "independent", "chunk_frames": 17},
        runtime={"cluster": "local"},
    )
    terminal = Terminal(job, "", columns)
    wait_until(lambda: bool(re.search(r"5\d\.\d% of ", terminal.text)))
    terminal.press_ctrl_c()
    terminal.end()
    return frames_of(terminal.text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--columns", type=int, default=80)
    parsed = parser.parse_args()
    videos = Path(tempfile.mkdtemp(prefix="progress-"))
    frames = record(videos, parsed.columns)
    shutil.rmtree(videos)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    for moment, pattern in MOMENTS.items():
        found = [one for one in frames if re.search(pattern, one.plain, re.MULTILINE)]
        console = Console(record=True, width=parsed.columns, file=io.StringIO())
        console.print(Text("$ tokpipe run videos.yaml", style="bold"))
        console.print(found[len(found) // 2])
        path = parsed.folder / f"progress-{parsed.columns}-{moment}.svg"
        console.save_svg(str(path), title="tokpipe", unique_id="progress")
        print(path)


if __name__ == "__main__":
    main()
