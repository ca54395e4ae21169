"""What many runs came to, for people and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import mean

from tests.chaos.faults import WEIGHTS
from tests.chaos.matrix import Result


def summary_lines(results: Sequence[Result], elapsed_s: float) -> Iterator[str]:
    """Yield the summary, line by line: seeds first, so that the sums stand at the end."""
    yield "seeds (fault@seconds), each replayed by --seed:"
    for result in results:
        faults = " ".join(f"{kind}@{at_s:.1f}" for at_s, kind in result.struck) or "none"
        mark = "ok  " if result.is_good else "BAD "
        yield f"  {mark} {result.plan.seed}: {faults}"
    struck = Counter(kind for result in results for _, kind in result.struck)
    hit = {
        kind: sum(kind in {name for _, name in result.struck} for result in results)
        for kind in struck
    }
    yield "faults by kind (in so many runs):"
    for kind, count in sorted(struck.items()):
        yield f"  {kind:16} {count:4} ({hit[kind]})"
    if never := sorted(WEIGHTS.keys() - struck.keys()):
        yield f"  never: {', '.join(never)}"
    yield "by rate drawn:"
    for rate in sorted({result.plan.rate_per_minute for result in results}):
        group = [result for result in results if result.plan.rate_per_minute == rate]
        goodputs = [result.goodput for result in group if result.goodput is not None]
        goodput = f"{mean(goodputs):.0%}" if goodputs else "not available"
        minutes = sum(result.elapsed_s for result in group) / 60
        per_minute = sum(len(result.struck) for result in group) / (minutes or 1)
        yield (
            f"  {rate:4.0f} faults/min: {len(group):3} runs, {per_minute:4.1f} struck, "
            f"{mean(r.elapsed_s for r in group):5.1f} s each, goodput {goodput}"
        )
    codes = Counter(str(life["code"]) for result in results for life in result.lives)
    ends = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    yield f"driver lives: {sum(codes.values())}, by exit code {{{ends}}}"
    yield (f"{len(results)} runs, {sum(struck.values())} faults in {elapsed_s / 60:.1f} min")
    bad = [result for result in results if not result.is_good]
    yield (
        f"{sum(r.num_lost for r in results)} lost, {sum(r.num_doubled for r in results)} doubled, "
        f"{sum(r.num_unequal for r in results)} unequal; {len(bad)} runs with a problem"
    )
    for result in bad:
        for problem in result.problems or ["rows lost, doubled or unequal"]:
            yield f"BAD seed {result.plan.seed}: {problem}"


def to_json(results: Sequence[Result], elapsed_s: float) -> str:
    """The same, whole, for machines."""
    runs = [{**asdict(result), "is_good": result.is_good} for result in results]
    return json.dumps({"elapsed_s": round(elapsed_s, 1), "runs": runs}, indent=1)
