"""The examples in the docstrings of the public functions run as they stand."""

import doctest

import pytest

import gradsieve as gs


@pytest.mark.parametrize("thing", [gs.select, gs.measure, gs.Workspace])
def test_the_example_of_a_public_name_runs(thing):
    (example,) = (
        found for found in doctest.DocTestFinder().find(thing, globs={}) if found.examples
    )
    assert doctest.DocTestRunner().run(example).failed == 0
