"""Tokenizes the sample film, kills the job in the middle, resumes it, and checks the result.

``make demo`` runs this. Every step is a command that you could type; what the commands print is in
out/demo.log.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tokpipe.reader import open_output

OUT = Path("out/demo")
JOB, LOG, PICTURE, REPORT = (OUT.with_suffix(end) for end in (".yaml", ".log", ".png", ".html"))
KILL_AFTER = 3
"""Clips that the output has when the job is killed."""


class Stopped(Exception):
    """Why the demo cannot go on."""


def main() -> int:
    os.chdir(Path(__file__).parents[1])
    began = time.monotonic()
    try:
        prepare()
        tokenize_until_killed()
        resume()
        audit()
        decode()
        report()
    except Stopped as why:
        say("", f"demo: {why}")
        return 1
    except KeyboardInterrupt:
        say("", "demo: interrupted; run it again to start over")
        return 130
    say(
        "",
        f"Done in {time.monotonic() - began:.0f} s. Open the report in a browser:",
        f"  {REPORT.resolve()}",
        "Next, tokenize your own videos: docs/quickstart.md",
    )
    return 0


def prepare() -> None:
    """Write the job file, and remove what an earlier demo left."""
    job = yaml.safe_load(Path("jobs/demo.yaml").read_text())
    record = OUT / "job.json"
    if record.exists():
        (source,) = json.loads(record.read_text())["job"]["sources"]
        if not str(Path(source["uri"]).parent).endswith("examples/data"):
            raise Stopped(f"{OUT} has codes of {source['uri']}. Move it away, and run this again.")
        say(f"removing {OUT} of an earlier demo")
    shutil.rmtree(OUT, ignore_errors=True)
    # One encoder, and a shard per clip: clips are committed one by one, so there is a middle.
    job["output"]["shard_bytes"] = 1024
    job["runtime"] = {"encode": {"max_actors": 1}, "clips_per_lease": 1}
    JOB.parent.mkdir(exist_ok=True)
    JOB.write_text(yaml.safe_dump(job, sort_keys=False))
    LOG.write_text("")


def tokenize_until_killed() -> None:
    say(f"1/5 tokenize  tokpipe run {JOB}")
    with LOG.open("a") as log:
        job = subprocess.Popen(tokpipe("run", JOB), env=environment(), stdout=log, stderr=log)
    try:
        while num_clips() < KILL_AFTER and job.poll() is None:
            time.sleep(0.01)
        ended = job.poll()
    finally:
        job.kill()  # SIGKILL: it cannot finish anything
        job.wait()
    if ended:
        raise failed("run", JOB)
    output = open_output(str(OUT))
    total = output.record.num_rows
    how = "killed with SIGKILL" if ended is None else "it was faster than the kill"
    say(f"              {how} after {output.num_clips} of {total} clips")


def resume() -> None:
    say("2/5 resume    the same command again")
    before = num_clips()
    run("run", JOB)
    totals = open_output(str(OUT)).totals
    new = totals.num_clips - before
    say(f"              {totals.num_clips} clips: {before} from before the kill, {new} new")
    say(f"              {totals.num_frames:,} frames became {totals.num_codes:,} codes")


def audit() -> None:
    say(f"3/5 audit     tokpipe audit {JOB} --sample 2")
    found = json.loads(run("audit", JOB, "--sample", 2, "--json"))
    num_same = sum(one["equal_fraction"] == 1.0 for one in found["sampled"])
    say(f"              nothing lost, nothing doubled: {found['num_tokenized']} clips, each once")
    say(f"              {num_same} clips were encoded again from the film: the same codes")


def decode() -> None:
    say(f"4/5 decode    tokpipe decode {JOB} --compare -o {PICTURE}")
    first = min(open_output(str(OUT)).clips(), key=lambda clip: clip.plan_row)
    made = json.loads(
        run("decode", JOB, "--clip", first.clip_id, "--compare", "-o", PICTURE, "--json")
    )
    psnr = made["quality"]["psnr_db"]
    say(f"              {PICTURE}: the film above, what its codes keep below, {psnr:.1f} dB")


def report() -> None:
    say(f"5/5 report    tokpipe report {JOB} -o {REPORT}")
    run("report", JOB, "-o", REPORT)


def run(*words: object) -> str:
    """Run a command; return what it printed."""
    with LOG.open("a") as log:
        done = subprocess.run(
            tokpipe(*words), env=environment(), stdout=subprocess.PIPE, stderr=log, text=True
        )
        log.write(done.stdout)
    if done.returncode != 0:
        raise failed(*words)
    return done.stdout


def tokpipe(*words: object) -> list[str]:
    return [sys.executable, "-m", "tokpipe.cli", *map(str, words)]


def environment() -> dict[str, str]:
    """This one, but without the cluster it may name: the demo starts a Ray that it can leave."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def failed(*words: object) -> Stopped:
    command = " ".join(map(str, ["tokpipe", *words]))
    end = "\n".join(LOG.read_text().splitlines()[-20:])
    return Stopped(f"this command failed: {command}\n\n{end}\n\nThe whole log is {LOG}")


def num_clips() -> int:
    """Clips that the output has at this moment."""
    return open_output(str(OUT)).num_clips if (OUT / "job.json").exists() else 0


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
