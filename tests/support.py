"""What the tests of all weights formats share."""

import random

import numpy as np

from keras_resnet.weights.readers import open_weights


def read_all(path):
    with open_weights(path) as weights:
        return {name: entry.read() for name, entry in weights.entries.items()}


def assert_equal(arrays, expected):
    assert sorted(arrays) == sorted(expected)
    for name, array in arrays.items():
        assert array.flags.c_contiguous and array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def expect_arrays_or_refusal(content, number, path):
    refused = 0
    for copy in damaged(content, number, random.Random(0)):
        path.write_bytes(copy)
        try:
            read_all(path)
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
    assert refused >= number // 3


def damaged(content, number, generator):
    """Copies of a file: cut short, or with a few bytes changed."""
    for i in range(number):
        copy = bytearray(content)
        if i % 3 == 0:
            del copy[generator.randrange(len(copy)) :]
        for _ in range(i % 3 * generator.choice([1, 1, 10])):
            copy[generator.randrange(len(copy))] = generator.randrange(256)
        yield bytes(copy)
