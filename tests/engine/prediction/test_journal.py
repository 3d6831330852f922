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


@pytest.mark.parametrize("name", [LINES, JOINED])
def test_records_of_an_earlier_prediction_are_moved_aside(tmp_path: Path, name: str) -> None:
    """Also the lines of one that was killed; and they do not pass for those of this one, if it is killed."""
    (tmp_path / name).write_text("[1]")
    journal = Journal(tmp_path)
    assert not (tmp_path / JOINED).exists()
    journal.close()
    assert (tmp_path / f"earlier_{name}").read_text() == "[1]"
    assert f"its records are in earlier_{name}" in journal.notes[0]
