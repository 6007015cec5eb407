"""Plays runs in no time, as gradsieve.lab.bench.frontier.worker does in minutes.

The method says how: "fail" ends with an error, "hang" waits until it is ended.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path


def wait_for_parent():
    os.read(0, 1)
    os._exit(1)


threading.Thread(target=wait_for_parent, daemon=True).start()
runs, setting = Path(sys.argv[1]), json.loads(sys.argv[2])
with Path(f"{runs}.started").open("a") as started:
    started.write(json.dumps(setting | {"pid": os.getpid()}) + "\n")
if setting["method"] == "fail":
    sys.exit("ValueError: this method fails")
if setting["method"] == "elsewhere":
    sys.exit(75)
if setting["method"] == "hang":
    time.sleep(600)
cores = sorted(os.sched_getaffinity(0))
line = {
    **setting,
    "bits_per_parameter": 1.0,
    "quality": 2.0,
    "curve": [[1, 2.0]],
    "seconds": 72.0,
    "torch": f"cores {cores}, threads {os.environ['OMP_NUM_THREADS']}",
}
with runs.open("a") as file:
    file.write(json.dumps(line) + "\n")
