"""What residuals have come to contain, by the topologies of the exchanges."""

import pytest

from gradsieve.outer.rests import Rests
from gradsieve.topology import TOPOLOGIES


def own_after(*names, rotates=False):
    rests = Rests(fragments=1)
    for name in names:
        rests.follow(0, TOPOLOGIES[name], rotates=rotates)
    return rests.are_own(0)


@pytest.mark.parametrize(
    ("names", "rotates", "are_own"),
    [
        ((), True, True),
        (("gather", "gather"), True, True),
        (("two-shot", "two-shot"), False, True),
        (("two-shot",), True, False),
        (("two-shot", "gather"), False, False),
        (("hierarchical", "gather", "gather"), False, False),
        (("hierarchical", "dense", "gather"), False, True),
        (("two-shot", "dense-fp16", "two-shot"), False, True),
    ],
)
def test_residuals_are_a_rank_s_own_until_others_share_them(names, rotates, are_own):
    assert own_after(*names, rotates=rotates) == are_own


def test_each_fragment_has_a_residual_of_its_own():
    rests = Rests(fragments=2)
    rests.follow(1, TOPOLOGIES["hierarchical"], rotates=False)
    assert rests.are_own(0)
    assert not rests.are_own(1)
    other = Rests(fragments=2)
    other.load(rests.contents)
    assert not other.are_own(1)
