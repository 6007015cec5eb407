"""Records short training runs, to prove that a change of the package changes no bit.

record.py OUT.json              record all cases
record.py --compare OLD.json    play again, and say what differs first in each case; 1 if any
record.py --keep                rewrite the small part that test_golden.py compares with
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cases import CASES
from compare import RECORDED, by_rank, differences, small_parts
from play import play_all

import gradsieve as gs


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("out", nargs="?", type=Path, metavar="OUT.json")
    what.add_argument("--compare", type=Path, metavar="OLD.json")
    what.add_argument("--keep", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on each rank")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds it")
    return parser.parse_args(arguments)


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> int:
    """Print the first difference of each case; 1 where there is one."""
    differing = 0
    for name in {**old, **new}:
        found = list(differences({name: old.get(name)}, {name: new.get(name)}))
        if found:
            differing += 1
            print(f"{found[0]} (and {len(found) - 1} more in this case)")
    total = len({**old, **new})
    print(f"{differing} of {total} cases differ" if differing else f"{total} cases are the same")
    return int(differing > 0)


def main() -> int:
    options = options_of()
    if options.keep and options.only:
        raise SystemExit("--keep writes all kept cases; leave --only out")
    cases = [case for case in CASES.values() if options.only in case.name]
    if options.keep:
        cases = [case for case in cases if case.is_kept]
    start = time.perf_counter()
    print(f"{len(cases)} cases of {Path(gs.__file__).parent}", flush=True)
    found = play_all(cases, options.threads)
    print(f"played in {time.perf_counter() - start:.0f} s")
    if options.compare:
        old = json.loads(options.compare.read_text())
        old = {name: ranks for name, ranks in old.items() if options.only in name}
        return compare(by_rank(old), by_rank(found))
    out = RECORDED if options.keep else options.out
    out.write_text(json.dumps(small_parts(found) if options.keep else found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
