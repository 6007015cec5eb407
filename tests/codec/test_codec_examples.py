"""The examples in the docstrings of the public functions run as they stand."""

import doctest

import pytest

from gradsieve.codec import inspect, single


@pytest.mark.parametrize("function", [single.encode, single.decode, inspect])
def test_the_example_of_a_public_function_runs(function):
    (example,) = doctest.DocTestFinder().find(function, globs={})
    assert example.examples
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    assert runner.run(example).failed == 0
