"""The page on frames runs as it stands."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "frames.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    sent = names["received"] + names["residual"].flatten()
    assert (sent - names["gradient"].flatten()).abs().max() < 1e-6
    assert 0 < float(capsys.readouterr().out) < 1
