"""A report on a real output, written once per session."""

import pytest

from tests.report.report_outputs import really_made
from tokpipe.config.trust import Trust
from tokpipe.reader import open_output
from tokpipe.report.write import WrittenReport


@pytest.fixture(scope="session")
def real_report(tmp_path_factory: pytest.TempPathFactory) -> WrittenReport:
    folder = tmp_path_factory.mktemp("report")
    output = open_output(str(really_made(folder)), trust=Trust(uris=True))
    return WrittenReport(output, folder / "report.html", num_pairs=2, device="cpu")
