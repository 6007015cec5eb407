"""Play one run on one core: ``python -m gradsieve.lab.bench.frontier.worker RUNS SETTING``."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import torch

from gradsieve.lab.bench.rate.play import Setting, play
from gradsieve.lab.bench.rate.runs import RunFile

ELSEWHERE = 75
"""The status where another process plays the run, EX_TEMPFAIL."""


def end_with_parent() -> None:
    """End this process when the other end of its standard input closes, however that happens."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(runs: str, text: str) -> int:
    end_with_parent()
    torch.set_num_threads(1)
    setting = Setting(**json.loads(text))
    file = RunFile(Path(runs))
    with file.claim(setting) as is_mine:
        if not is_mine:
            return ELSEWHERE
        # Another command may have finished it since this process was started.
        if file.find(setting) is None:
            file.append(play(setting))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
