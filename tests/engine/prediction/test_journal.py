"""Records that are written as they come, and joined at the end."""

import json
from pathlib import Path

import pytest

from detkit.engine.prediction.journal import JOINED, LINES, Journal


@pytest.mark.parametrize("records", [[], [{"file": "a"}], [{"file": "猫.jpg", "n": 1.5}, {"file": "caf\udce9"}, {}]])
def test_the_joined_file_is_the_list_of_the_records(tmp_path: Path, records: list[dict[str, object]]) -> None:
    journal = Journal(tmp_path)
    for record in records:
        journal.write(record)
    assert list(journal.records()) == records
    journal.close()
    assert json.loads((tmp_path / JOINED).read_text(encoding="utf-8")) == records
    assert [path.name for path in tmp_path.iterdir()] == [JOINED]


def test_every_record_is_on_the_disk_when_it_has_been_written(tmp_path: Path) -> None:
    """So that a process that is killed leaves them."""
    journal = Journal(tmp_path)
    journal.write({"file": "a"})
    assert (tmp_path / LINES).read_text() == '{"file": "a"}\n'
    journal.close()


def test_an_earlier_result_does_not_pass_for_that_of_a_run_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / JOINED).write_text("[1]")
    journal = Journal(tmp_path)
    assert not (tmp_path / JOINED).exists()
    journal.close()
