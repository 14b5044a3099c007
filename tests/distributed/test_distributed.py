"""Every check of the pair of processes, by its name."""

import pytest

from tests.distributed import pair


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    return pair.run(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("name", pair.checks())
def test_two_processes(reports, name):
    outcomes = [report.get(name, "it did not come to this check") for report in reports]
    if any(outcomes):
        pytest.fail("\n".join(f"rank {rank}: {outcome or 'passed'}" for rank, outcome in enumerate(outcomes)), False)
