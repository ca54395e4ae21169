"""The summary of many runs, for people and as JSON."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import mean

from tests.chaos.faults import WEIGHTS
from tests.chaos.lives import Result


def summary_lines(results: Sequence[Result], elapsed_s: float) -> Iterator[str]:
    """Yield the summary line by line; the totals come last."""
    yield "seeds (fault@seconds), each replayed by --seed:"
    for result in results:
        faults = " ".join(f"{kind}@{at_s:.1f}" for at_s, kind in result.struck) or "none"
        yield f"  {'ok  ' if result.is_good else 'BAD '} {result.plan.seed}: {faults}"
    struck = Counter(kind for result in results for _, kind in result.struck)
    hit = Counter(kind for result in results for kind in {kind for _, kind in result.struck})
    yield "faults by kind (number of runs):"
    for kind, count in sorted(struck.items()):
        yield f"  {kind:16} {count:4} ({hit[kind]})"
    if never := sorted(WEIGHTS.keys() - struck.keys()):
        yield f"  never: {', '.join(never)}"
    if goodputs := [result.goodput for result in results if result.goodput is not None]:
        yield f"mean goodput {mean(goodputs):.0%}"
    codes = Counter(str(life["code"]) for result in results for life in result.lives)
    ends = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    yield f"drivers: {codes.total()}, by exit code {{{ends}}}"
    yield f"{len(results)} runs, {struck.total()} faults in {elapsed_s / 60:.1f} min"
    bad = [result for result in results if not result.is_good]
    yield (
        f"{sum(r.num_lost for r in results)} lost, {sum(r.num_doubled for r in results)} doubled, "
        f"{sum(r.num_unequal for r in results)} unequal, {sum(r.num_blamed for r in results)} "
        f"blamed wrongly, {sum(r.num_silent for r in results)} silent; {len(bad)} runs with a "
        "problem"
    )
    for result in bad:
        for problem in result.problems or ["rows lost, doubled or unequal"]:
            yield f"BAD seed {result.plan.seed}: {problem}"


def to_json(results: Sequence[Result], elapsed_s: float) -> str:
    """Everything that is known about each run."""
    runs = [{**asdict(result), "is_good": result.is_good} for result in results]
    return json.dumps({"elapsed_s": round(elapsed_s, 1), "runs": runs}, indent=1)
