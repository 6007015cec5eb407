"""Python in a process of its own, for what shows only where nothing was imported before."""

import os
import subprocess
import sys

SECONDS = 300


def printed_by(*arguments: str, **environment: str) -> str:
    """What Python prints with these arguments; it must end without an error within SECONDS."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
