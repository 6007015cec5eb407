import subprocess
import sys

import pytest

_MAY_UNSHARE = """
import ctypes
unshare = ctypes.CDLL(None).unshare
new_user, new_net = 0x10000000, 0x40000000
raise SystemExit(unshare(new_net) != 0 and unshare(new_user | new_net) != 0)
"""


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skip the test where the system makes no network namespace for us."""
    pytest.importorskip("pyroute2")
    if subprocess.run([sys.executable, "-c", _MAY_UNSHARE], check=False).returncode != 0:
        pytest.skip("neither root nor unprivileged user namespaces: no network namespace here")
