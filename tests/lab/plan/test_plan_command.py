"""`gradsieve plan` as a user runs it."""

import json

import pytest
from commands import answered, gradsieve


def test_plan_predicts_and_compares(tmp_path):
    rows = tmp_path / "rows.json"
    row = {
        "workload": "mnist_cnn",
        "link": "2 ranks, 1 Gbit/s each way (tbf)",
        "ranks": 2,
        "method": "ddp",
        "step_seconds": 0.15,
        "limit_seconds": 0.06,
        "bits_per_parameter": 32.0,
    }
    rows.write_text(json.dumps([row]))
    own = ("--parameters", "100M", "--step-ms", 100, "--link", "1gbit", "--ranks", 2, "--ranks", 64)
    to = ("--out", tmp_path / "plan", "--json", tmp_path / "plan.json")
    ran = gradsieve("plan", *own, "--rows", rows, *to)
    assert ran.returncode == 0, ran.stderr
    content = json.loads((tmp_path / "plan.json").read_text())
    assert [planned["ranks"] for planned in content["rows"]] == [2, 64]
    assert all(planned["seconds"]["dense"] > 3 for planned in content["rows"])
    assert all(number > 0 for number in content["machine"].values())
    (compared,) = content["comparisons"]
    assert 0.1 < compared["predicted_seconds"] < 0.3
    assert "100,000,000 parameters" in ran.stdout
    assert "two-shot" in ran.stdout
    assert "predicted and measured" in ran.stdout
    assert "measuring this machine" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--parameters", "100M"), "together"),
        (("--workload", "nothing"), "no workload"),
        (("--rows", "missing.json"), "cannot read the rows"),
        (("--link", "100"), "write the unit"),
    ],
)
def test_plan_says_what_is_wrong(arguments, words, tmp_path):
    said = answered("plan", *arguments, "--out", tmp_path)
    assert said.exit_code == 1
    assert words in said.stderr


def test_plan_takes_parameters_with_a_unit():
    said = answered("plan", "--parameters", "350Q", "--step-ms", 100)
    assert said.exit_code == 2
    assert "350M" in said.stderr
