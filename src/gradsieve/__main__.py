"""``python -m gradsieve`` is the gradsieve command."""

from gradsieve.cli import app

app(prog_name="gradsieve")
