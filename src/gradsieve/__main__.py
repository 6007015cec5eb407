"""The ``gradsieve`` command, also run as ``python -m gradsieve``.

The commands live in `gradsieve.lab`, which needs packages that training does without.
"""

import sys

LAB = "typer", "rich", "altair", "vl_convert", "pooch", "pyroute2"
"""The packages of the `lab` extra."""


def main() -> None:
    """Run the command. Exits with status 2 where the packages of the `lab` extra are missing."""
    try:
        from gradsieve.lab.cli import app

        app(prog_name="gradsieve")
    except ModuleNotFoundError as error:
        if error.name not in LAB:
            raise
        print(
            f"gradsieve: the command needs {error.name}, which is not installed: "
            "pip install 'gradsieve[lab]'",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
