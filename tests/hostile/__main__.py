"""The long form: ``python -m tests.hostile [--cases N] [--seed S] [--only NAME]``."""

import argparse
import sys
import tempfile
from pathlib import Path

from ray.cluster_utils import Cluster

from tests.hostile.corpus import video_cases
from tests.hostile.run import Report, corpus_job, decode_corpus, plan_tables, run_corpus_job
from tests.hostile.tables import table_cases

TABLES_SHARE = 0.2
"""Share of damaged tables among the cases."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--cases", type=int, default=1200, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="selects the generated damage")
    parser.add_argument("--only", help="only cases with this in their names, and no job")
    options = parser.parse_args()

    tables = table_cases(round(options.cases * TABLES_SHARE), options.seed)
    videos = video_cases(options.cases - len(tables), options.seed)
    if options.only:
        tables = [case for case in tables if options.only in case.name]
        videos = [case for case in videos if options.only in case.name]
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan_tables(tables, folder / "planned", report)
        in_job = [case for case in tables if case.in_job]
        job = corpus_job(folder, videos, in_job)
        alone = decode_corpus(job, videos, report)
        if not options.only:
            cluster = Cluster(
                initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
            )
            try:
                run_corpus_job(job, alone, cluster.address, report, timeout_s=1200)
            finally:
                cluster.shutdown()
    print(f"{report.num_cases} hostile cases, seed {options.seed}")
    print("\n".join(report.lines()))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
