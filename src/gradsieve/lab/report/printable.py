"""Text that a page and a chart can show."""

import re
from typing import Any

# XML cannot hold control characters, lone surrogates and noncharacters; the expressions of a chart
# end at the separators of lines and paragraphs.
UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def printable(content: Any) -> Any:
    """Return content of JSON with the characters that cannot be shown written as escapes."""
    if isinstance(content, str):
        return UNSHOWABLE.sub(escaped, content)
    if isinstance(content, dict):
        return {printable(key): printable(value) for key, value in content.items()}
    if isinstance(content, list):
        return [printable(value) for value in content]
    return content


def escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
