import hashlib

import numpy as np

from pipeline.rng import generator


def test_a_generator_is_philox_at_the_stated_key_and_counter():
    word = int.from_bytes(hashlib.blake2b(b"original/samples", digest_size=8).digest(), "little")
    expected = np.random.Philox(key=np.array([7, word], np.uint64), counter=np.array([0, 0, 5, 3], np.uint64))
    drawn = generator(7, "original/samples", epoch=3, step=5).bit_generator
    assert drawn.random_raw(20).tolist() == expected.random_raw(20).tolist()


def test_seed_purpose_epoch_and_step_all_matter():
    arguments = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (2**64 - 1, "a", 0, 0)]
    draws = {tuple(generator(*each).integers(0, 2**63, 4).tolist()) for each in arguments}
    assert len(draws) == len(arguments)
