"""The ``gradsieve`` command, also run as ``python -m gradsieve``.

The commands live in `gradsieve.lab`, which needs packages that training does without.
"""

import sys


def main() -> None:
    """Run the command. Exits with status 2 where the packages of the `lab` extra are missing."""
    try:
        from gradsieve.lab.cli import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            f"gradsieve: the command needs {error.name}, which is not installed: "
            "pip install 'gradsieve[lab]'",
            file=sys.stderr,
        )
        sys.exit(2)
    app(prog_name="gradsieve")


if __name__ == "__main__":
    main()
