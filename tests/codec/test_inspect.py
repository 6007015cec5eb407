"""A frame taken apart: every byte is in one of its parts."""

import pytest
import torch
from mutate import SAMPLES

import gradsieve as gs


@pytest.mark.parametrize("sample", range(0, len(SAMPLES), 4))
def test_the_parts_add_up_to_the_frame(sample):
    frame = torch.frombuffer(bytearray(SAMPLES[sample]), dtype=torch.uint8)
    report = gs.inspect(frame)
    assert report.bytes == frame.numel()
    assert report.header_bytes + sum(section.bytes for section in report.sections) == report.bytes
    assert report.bits_per_parameter == pytest.approx(8 * report.bytes / report.numel)
    for section in report.sections:
        assert section.positions_bytes >= 0
        assert section.values_bytes >= 0
