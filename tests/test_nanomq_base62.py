"""
Base62 against a decoder that knows nothing of the encoder.
"""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.nanomq.base62 import encode

DIGITS = {character: value for value, character in enumerate("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")}


def decoded(text):
    digits = text.lstrip("0")
    number = 0
    for start in range(0, len(digits), 100):
        chunk = digits[start : start + 100]
        value = 0
        for character in chunk:
            value = value * 62 + DIGITS[character]
        number = number * 62 ** len(chunk) + value
    return b"\0" * (len(text) - len(digits)) + number.to_bytes((number.bit_length() + 7) // 8, "big")


class Base62Tests(SynchronousTestCase):
    def test_known(self):
        for data, text in [
            (b"", ""),
            (b"\0\0\0", "000"),
            (b"A", "13"),
            (b"AB", "4LS"),
            (b"\0\1\2", "04A"),
            (b"\xff\xfe\xfd", "18OS5"),
        ]:
            self.assertEqual(encode(data), text)

    @given(st.binary(max_size=200))
    def test_short(self, data):
        self.assertEqual(decoded(encode(data)), data)

    @settings(max_examples=25)
    @given(st.integers(200, 6000), st.randoms(use_true_random=False))
    def test_long(self, size, random):
        data = random.randbytes(size)
        self.assertEqual(decoded(encode(data)), data)

    def test_around_each_split(self):
        for exponent in (1, 2, 4, 8, 512, 1024, 2048, 4096, 8192):
            power = 62**exponent
            for number in (power - 1, power, power + 1, power * power - 1, power * power, power * (power - 1)):
                data = number.to_bytes((number.bit_length() + 7) // 8, "big")
                self.assertEqual(decoded(encode(data)), data, f"62 ** {exponent}")

    def test_all_ones(self):
        for size in (1, 2, 3, 1000, 4096, 65536):
            data = b"\xff" * size
            self.assertEqual(decoded(encode(data)), data)
