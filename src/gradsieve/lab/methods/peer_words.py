"""The options of a peer in one line of text, "every=30,k=64", read into a dataclass."""

from typing import Any, TypeVar, get_type_hints

from gradsieve.config import require_word
from gradsieve.lab.methods.sieve_words import WORDS, read_count

Options = TypeVar("Options")


def read_options(text: str, kind: type[Options]) -> Options:
    """Return a `kind` with the options that `text` names; an empty text names none.

    Args:
        kind: a dataclass whose fields are of type int, float or bool and have defaults.

    Raises:
        ValueError: an option is unknown or comes twice, or its value is out of range.
    """
    types = get_type_hints(kind)
    found: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        if not equals or name not in types:
            raise ValueError(
                f"write OPTION=VALUE, with commas between and OPTION one of {', '.join(types)}; "
                f"got {part!r}"
            )
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = read_value(name, value, types[name])
    return kind(**found)


def read_value(name: str, text: str, kind: type) -> int | float | bool:
    if kind is bool:
        return WORDS[require_word(name, text, tuple(WORDS))]
    if kind is int:
        return read_count(name, text)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {text!r}") from None


def require_positive(**numbers: int) -> None:
    """Raise ValueError where a number is below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number}")


def require_shares(**numbers: float) -> None:
    """Raise ValueError where a number is not between 0 and 1."""
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {number}")


def require_bits(bits: int, known: tuple[int, ...]) -> None:
    if bits not in known:
        raise ValueError(f"bits must be one of {', '.join(map(str, known))}, got {bits}")
