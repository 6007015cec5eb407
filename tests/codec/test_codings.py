"""The table of codings is complete, and nothing but the table knows which codings there are."""

import re
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch

import gradsieve as gs
from gradsieve.codec import CODINGS, VALUES, Kind, decode_frame, encode_frame, whole_section
from gradsieve.codec.codings import VALUE_CODINGS, ValueCodings, by_kind
from gradsieve.codec.float_format import FloatFormat
from gradsieve.codec.pruned_floats import PrunedFloats
from gradsieve.codec.whole_floats import WholeFloats

ROOT = Path(__file__).parents[2]


def test_every_kind_has_its_own_coding():
    assert {kind: CODINGS[kind].kind for kind in Kind} == {kind: kind for kind in Kind}
    assert len(CODINGS) == len(Kind)


def test_two_codings_of_one_kind_are_refused():
    with pytest.raises(AssertionError, match="same kind"):
        by_kind(CODINGS[Kind.FLOAT32], CODINGS[Kind.BFLOAT16], CODINGS[Kind.FLOAT32])


def test_every_word_of_the_user_has_codings_of_the_table():
    assert set(VALUE_CODINGS) == set(VALUES)
    for codings in VALUE_CODINGS.values():
        for coding in filter(None, codings):
            assert CODINGS[coding.kind] is coding


def test_the_document_names_every_kind():
    document = (ROOT / "docs" / "wire-format.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `([A-Z]\w+)` \|", document, re.MULTILINE)
    assert {int(number): name for number, name in rows} == {kind: kind.name for kind in Kind}


def test_no_other_file_of_the_package_asks_for_a_kind():
    files = (ROOT / "src").rglob("*.py")
    asking = {file.name for file in files if re.search(r"\bKind\.[A-Z]", file.read_text())}
    assert asking == {"codings.py"}


class Float16(FloatFormat):
    width = 2

    def to_bytes(self, values):
        return values.astype("<f2").view(np.uint8)

    def from_bytes(self, raw):
        return raw.view("<f2").astype(np.float32)


class NewKind(IntEnum):
    FLOAT16 = 200
    WHOLE_FLOAT16 = 201


def test_a_new_coding_needs_rows_in_the_tables_and_nothing_else(monkeypatch):
    pruned = PrunedFloats(NewKind.FLOAT16, Float16())
    whole = WholeFloats(NewKind.WHOLE_FLOAT16, Float16())
    for coding in (pruned, whole):
        monkeypatch.setitem(CODINGS, coding.kind, coding)
    monkeypatch.setitem(VALUE_CODINGS, "float16", ValueCodings(pruned, whole))
    monkeypatch.setattr("gradsieve.codec.single.VALUES", tuple(VALUE_CODINGS))

    values = torch.randn(300, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(0, 3000, 10, dtype=torch.int32)
    residual = torch.zeros(3000)
    frame = gs.encode(indices, values, 3000, mode="float16", residual=residual)
    places, arrived = gs.decode(frame)
    assert torch.equal(places, indices)
    assert torch.equal(arrived, values.half().float())
    torch.testing.assert_close(arrived + residual[places.long()], values)
    (report,) = gs.inspect(frame).sections
    assert (report.kind, report.values_bytes) == ("float16", 600)

    section = whole_section(values.numpy(), "float16")
    (received,) = decode_frame(encode_frame([section])).sections
    total = np.zeros(300, np.float32)
    received.add_to(total, 1.0)
    np.testing.assert_array_equal(total, arrived)
    assert received.whole
    assert not received.is_exact
