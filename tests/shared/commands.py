"""The commands, run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from gradsieve.lab.cli import app
from gradsieve.lab.link import LinkError, ShapedLink

COMMAND = [str(Path(sys.executable).with_name("gradsieve"))]


def gradsieve(*arguments, timeout=300, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"COLUMNS": "120"} | environment,
        check=False,
    )


def answered(*arguments):
    """What the command answers in this process: another one would import torch first.

    What a user would see as a traceback is raised here.
    """
    words = list(map(str, arguments))
    return CliRunner().invoke(app, words, env={"COLUMNS": "120"}, catch_exceptions=False)


def link_can_be_shaped():
    try:
        ShapedLink(2, "1gbit").close()
    except LinkError:
        return False
    return True
