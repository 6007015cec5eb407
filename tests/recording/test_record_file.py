"""Files of records that survive what happens to files."""

import json
import os

import pytest

import gradsieve as gs
from gradsieve.recording.files import (
    RecordFile,
    RecordsError,
    read_lines,
    read_run,
    read_steps,
)


def write(path, *lines, heading=None):
    file = RecordFile(path, heading or {})
    for line in lines:
        file.write(line)
    file.close()


def test_a_heading_then_a_line_a_record(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    write(path, {"step": 0, "loss": 1.5}, {"step": 1, "loss": float("nan")}, heading={"ranks": 2})
    heading, *records = map(json.loads, path.read_text().splitlines())
    assert heading["ranks"] == 2
    assert heading["format"] == 1
    assert records == [{"step": 0, "loss": 1.5}, {"step": 1, "loss": None}]
    assert read_run(path)[0]["ranks"] == 2


def test_a_torn_last_line_is_skipped_and_ended_by_the_next_run(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, {"step": 0}, {"step": 1})
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 4)
    assert [line["step"] for line in read_steps(path)] == [0]
    write(path, {"step": 1, "loss": 2})
    assert read_steps(path) == [{"step": 0}, {"step": 1, "loss": 2}]


def test_a_run_that_goes_on_takes_over_from_its_first_step(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, {"step": 0}, {"step": 1, "loss": 1}, {"step": 2}, {"step": 3})
    write(path, {"step": 1, "loss": 9}, {"step": 2, "loss": 8})
    assert read_steps(path) == [{"step": 0}, {"step": 1, "loss": 9}, {"step": 2, "loss": 8}]
    write(path, {"step": 0, "loss": 7})
    assert read_steps(path) == [{"step": 0, "loss": 7}]


def test_garbage_is_no_record(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"step": 0}\n\x80\xff\n[1]\n"word"\n{"step": "1"}\n{"step": true}\n{"st')
    assert read_steps(path) == [{"step": 0}]


def test_a_newer_format_is_refused_by_name(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"gradsieve": "9.1", "format": 2}\n{"step": 0}\n')
    with pytest.raises(RecordsError, match=r"of format 2.*gradsieve 9\.1.*install"):
        list(read_lines(path))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(RecordsError, match=r"cannot read .*No such file"):
        list(read_lines(tmp_path / "none.jsonl"))


def test_a_full_disk_is_told_once_and_nothing_is_raised(tmp_path, caplog):
    link = tmp_path / "records.jsonl"
    link.symlink_to("/dev/full")
    file = RecordFile(link, {})
    for step in range(3):
        file.write({"step": step})
    file.close()
    (told,) = caplog.messages
    assert "No space left" in told
    assert "training goes on" in told


def test_writing_goes_on_when_there_is_space_again(tmp_path):
    path = tmp_path / "records.jsonl"
    write(path, {"step": 0})
    file = RecordFile(path, {})
    file.write({"step": 1})
    whole, file._file = file._file, open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    file.write({"step": 2})
    file._file.close()
    file._file = whole
    file.write({"step": 3})
    file.close()
    assert [line["step"] for line in read_steps(path)] == [0, 1, 3]


def test_a_heading_that_could_not_be_written_is_written_later(tmp_path):
    link, path = tmp_path / "link.jsonl", tmp_path / "records.jsonl"
    link.symlink_to("/dev/full")
    file = RecordFile(link, {"ranks": 2})
    file.write({"step": 0})
    file._file.close()
    file._file = path.open("ab", buffering=0)
    file.write({"step": 1})
    file.close()
    assert read_run(path)[0]["ranks"] == 2
    assert [line["step"] for line in read_steps(path)] == [1]


def test_json_lines_raise_nothing_on_a_full_disk(tmp_path, caplog):
    link = tmp_path / "lines.jsonl"
    link.symlink_to("/dev/full")
    lines = gs.JsonLines(link)
    lines.write({"step": 0})
    lines.close()
    assert "No space left" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_told(tmp_path, caplog):
    tmp_path.chmod(0o500)
    write(tmp_path / "records.jsonl", {"step": 0})
    assert "Permission denied" in caplog.text


def test_a_directory_that_is_a_file_is_told(tmp_path, caplog):
    (tmp_path / "out").write_text("")
    write(tmp_path / "out" / "records.jsonl", {"step": 0}, {"step": 1})
    assert caplog.text.count("cannot write") == 1
