"""What a report finds in a directory, and what it refuses."""

import json
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner
from written import step_record, write_rows, write_run

import gradsieve as gs
from gradsieve.lab.cli import app
from gradsieve.lab.report.series import grouped
from gradsieve.lab.report.source import read_source
from gradsieve.lab.report.summary import sentences
from gradsieve.recording.files import HISTOGRAMS, RECORDS, RecordsError


def test_runs_in_the_order_in_which_they_were_started(tmp_path):
    write_run(tmp_path / "a", "second", seed=1)
    write_run(tmp_path / "b" / "deep", "first", seed=0)
    runs = read_source(tmp_path).runs
    assert [(run.title, run.name) for run in runs] == [("first", "b/deep"), ("second", "a")]
    assert [line["step"] for line in runs[0].steps] == list(range(60))
    assert [counted.step for counted in runs[0].counted] == [0, 20, 40]
    assert runs[0].result["metric"] == 0.9


def test_the_directory_of_a_single_run(tmp_path):
    write_run(tmp_path / "mine", "", method="")
    (run,) = read_source(tmp_path / "mine").runs
    assert run.title == "mine"
    assert run.result == run.config == {}


def test_lines_of_json_lines_under_any_name(tmp_path):
    lines = gs.JsonLines(tmp_path / "sieve-rank0.jsonl")
    for step in range(3):
        lines(step_record(step))
    lines.close()
    (tmp_path / "other.jsonl").write_text('{"workload": "gpt"}\n')
    (run,) = read_source(tmp_path).runs
    assert run.title == "sieve-rank0"
    assert len(run.steps) == 3
    assert run.counted == []


def test_rows_of_benchmarks(tmp_path):
    write_rows(tmp_path / "steps.json")
    (tmp_path / "half.json").write_text('[{"ratio"')
    (tmp_path / "words.json").write_text('["a"]')
    (rows,) = read_source(tmp_path).tables
    assert rows.name == "steps"
    assert len(rows.rows) == 2


def refusal(directory):
    outcome = CliRunner().invoke(app, ["report", str(directory)])
    assert outcome.exit_code == 1
    assert "Traceback" not in outcome.output
    return " ".join(outcome.output.split())


def test_what_is_no_directory(tmp_path):
    assert "is no directory" in refusal(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is no directory" in refusal(tmp_path / "file")


def test_a_directory_without_records(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert "no records in" in refusal(tmp_path)
    (tmp_path / RECORDS).write_bytes(b"\x80\xff garbage")
    assert "records.jsonl holds no record of a step" in refusal(tmp_path)


def test_records_of_a_newer_version(tmp_path):
    write_run(tmp_path, "mine")
    text = (tmp_path / RECORDS).read_text().replace('"format":1', '"format":7')
    (tmp_path / RECORDS).write_text(text)
    assert "of format 7, this gradsieve reads up to 1" in refusal(tmp_path)


def test_histograms_that_are_none(tmp_path):
    write_run(tmp_path, "mine")
    with (tmp_path / HISTOGRAMS).open("a") as file:
        file.write(
            json.dumps({"step": 60, "ranks": 1, "histograms": {"weight": {"one": {}}}}) + "\n"
        )
    assert "what is no histogram" in refusal(tmp_path)


def test_files_that_were_cut_short_are_read_as_far_as_they_go(tmp_path):
    write_run(tmp_path, "mine")
    for name in (RECORDS, HISTOGRAMS, "config.json", "result.json"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
    (run,) = read_source(tmp_path).runs
    assert 40 < len(run.steps) < 55
    assert [counted.step for counted in run.counted] == [0, 20]
    assert run.result == {}


def test_a_directory_that_cannot_be_written(tmp_path):
    write_run(tmp_path / "run", "mine", steps=3)
    (tmp_path / "out").write_text("a file")
    words = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 1
    assert "cannot write" in outcome.output


@pytest.mark.parametrize("found", [[], 3, {"weight": []}, {"weight": {"one": {"bins": []}}}])
def test_histograms_of_other_shapes(tmp_path, found):
    write_run(tmp_path, "mine", steps=3)
    (tmp_path / HISTOGRAMS).write_text(json.dumps({"step": 0, "histograms": found}) + "\n")
    with pytest.raises(RecordsError, match="no histogram"):
        _ = read_source(tmp_path).runs[0].counted


@pytest.mark.parametrize("words", [[], ["run", "--frame", "x"]])
def test_a_directory_or_a_frame(words):
    outcome = CliRunner().invoke(app, ["report", *words])
    assert outcome.exit_code == 2
    assert "either a directory" in outcome.output


def test_files_of_others_are_left_alone(tmp_path):
    write_run(tmp_path / "run", "mine", steps=3)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "other.jsonl").write_bytes(b"\x80\xff")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "log.json").write_text('[{"epoch": 1, "loss": 2}]')
    source = read_source(tmp_path)
    assert [run.title for run in source.runs] == ["mine"]
    assert source.tables == []


def test_a_plain_run_without_a_result_is_told_of(tmp_path):
    write_run(tmp_path / "ddp", "plain DDP", method="ddp", steps=5)
    write_run(tmp_path / "sieve", "2 σ", seed=1, steps=5)
    (tmp_path / "ddp" / "result.json").unlink()
    words = sentences(grouped(read_source(tmp_path).runs))
    assert len(words) == 3


def test_a_name_with_characters_that_no_chart_can_show_is_shown_with_escapes(tmp_path):
    odd = ["\u2028", "\u2029", "\x85", "\x1c", "\x1e", "\x0b", "\0", "\x1b[31m", "\uffff"]
    odd.append("\udc80")
    layers = [f"layer{character}.weight" for character in odd]
    directory = tmp_path / "odd\u2028name"
    write_run(directory / "a\x1eb", f"title\u2028{odd[4]}", layers=layers, steps=21)
    outcome = CliRunner().invoke(
        app, ["report", str(directory), "--json", str(tmp_path / "rows.json")]
    )
    assert outcome.exit_code == 0, outcome.output
    page = (directory / "report" / "index.html").read_text(encoding="utf-8")
    assert not any(character in page for character in odd)
    for escape in ("u2028", "u2029", "x85", "x1c", "x1e", "x0b", "x00", "x1b[31m", "uffff"):
        assert rf"layer\\{escape}.weight" in page, escape
    (run,) = read_source(directory).runs
    assert len(run.pruned) == len(set(run.pruned)) == len(odd)
    for figure in (directory / "report").rglob("*.svg"):
        ElementTree.parse(figure)
