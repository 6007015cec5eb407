"""Run a command inside a rank's network namespace.

`enter.py HUB NAMESPACE -- COMMAND [ARGUMENT …]` joins the network namespace at the path
`NAMESPACE`, a file descriptor of the process `HUB`, and becomes COMMAND: same pid, same standard
streams, same signals. The exit status is COMMAND's, or 126 or 127 where it could not be started.

Nothing ties the command to its parent: PR_SET_PDEATHSIG would end a rank as soon as the *thread*
that started it does. The hub kills whoever is in its namespaces when the link ends.

Run by its path, for the reason given in `hub`; imports the standard library only.
"""

import contextlib
import ctypes
import os
import sys


def main(arguments: list[str]) -> int:
    """Join the namespace and become the command; returns an exit status only on failure."""
    if len(arguments) < 4 or arguments[2] != "--":
        print("usage: enter.py HUB NAMESPACE -- COMMAND [ARGUMENT …]", file=sys.stderr)
        return 126
    hub, namespace, command = int(arguments[0]), arguments[1], arguments[3:]
    try:
        _join(hub, namespace)
    except OSError as error:
        print(f"gradsieve: cannot join the link, has it ended? {error}", file=sys.stderr)
        return 126
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"gradsieve: cannot run {command[0]!r}: {error.strerror}", file=sys.stderr)
        return 127


def _join(hub: int, namespace: str) -> None:
    user_namespace = f"/proc/{hub}/ns/user"
    if not os.path.samefile(user_namespace, "/proc/self/ns/user"):
        _set_namespace(user_namespace)
    _set_namespace(namespace)
    # The hub gives up this path before it looks for members to kill. Where it is still there,
    # the hub will find us; where it is not, the hub may have missed us.
    if not _is_ours(namespace):
        raise ProcessLookupError("the link ended meanwhile")


def _is_ours(namespace: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(namespace, "/proc/self/ns/net")
    return False


def _set_namespace(path: str) -> None:
    # os.setns came with Python 3.12.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
