"""
NanoMQ's base62: the bytes are one big-endian number.
"""

from __future__ import annotations

from functools import lru_cache

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_PAIRS = tuple(high + low for high in ALPHABET for low in ALPHABET)
_SCHOOLBOOK = 9
"""Up to this level the interpreter's own division is faster; above it, multiplying by a reciprocal is."""
_GUARD = 32
"""Extra bits of a reciprocal, so that its error does not grow from level to level."""


def encode(data: bytes) -> str:
    """
    Encode bytes.

    The number is halved repeatedly. Long numbers are divided by multiplying with a reciprocal, which takes the interpreter less
    than quadratic time: some 40 ms for 64 KiB, 3 s for 1 MiB. The first number of its size takes more than twice as long, for
    the reciprocals; see :func:`prepare`.

    :returns: a ``0`` for each leading zero byte, then the digits of the number that the other bytes form; ``""`` for no bytes.
    """
    significant = data.lstrip(b"\0")
    zeros = "0" * (len(data) - len(significant))
    if not significant:
        return zeros
    numbers = [int.from_bytes(significant, "big")]
    level = _level(len(significant))
    while level > _SCHOOLBOOK:
        numbers = [half for number in numbers for half in _split(number, level)]
        level -= 1
    while level > 1:
        power = 62 ** (1 << level)
        numbers = [half for number in numbers for half in divmod(number, power)]
        level -= 1
    return zeros + "".join([_PAIRS[number // 3844] + _PAIRS[number % 3844] for number in numbers]).lstrip("0")


def prepare(size: int = 65_536) -> None:
    """
    Compute in advance the reciprocals for payloads up to a size.

    :param size: bytes; 64 KiB take some 60 ms.
    """
    _power(_level(size))


def _level(size: int) -> int:
    """Return how often a number of so many bytes is halved."""
    level = 1
    while size * 8 > 2 * (5 << level):
        level += 1
    return level


def _split(number: int, level: int) -> tuple[int, int]:
    """
    Divide a number below ``62 ** (2 << level)`` by ``62 ** (1 << level)``.

    As 62 is twice 31, the last bits stay as they are, and the bits before them are divided by a power of 31.
    """
    shift = 1 << level
    power, reciprocal = _power(level)
    bits = power.bit_length()
    rest = number >> shift
    high = rest >> bits - 1
    spare = bits + shift + 1 - high.bit_length()
    quotient = high * (reciprocal >> spare) >> bits + shift + 1 + _GUARD - spare
    mask = (4 << bits) - 1
    rest = (rest & mask) - (quotient & mask) * power & mask
    while rest >= power:
        quotient += 1
        rest -= power
    return quotient, rest << shift | number & (1 << shift) - 1


@lru_cache(maxsize=32)
def _power(level: int) -> tuple[int, int]:
    """
    Compute the divisor of a level and its reciprocal.

    :returns: ``31 ** (1 << level)``, of ``b`` bits, and ``2 ** (2 * b + (1 << level) + _GUARD)`` divided by it, at most a few
        units too low.
    """
    if level <= _SCHOOLBOOK:
        power = 31 ** (1 << level)
        return power, (1 << 2 * power.bit_length() + (1 << level) + _GUARD) // power
    half, estimate = _power(level - 1)
    power = half * half
    scale = 2 * power.bit_length() + (1 << level) + _GUARD
    # The square of the half-length reciprocal has half of the bits right; one Newton step gives the rest.
    estimate = estimate * estimate >> 4 * half.bit_length() + (1 << level) + 2 * _GUARD - scale
    return power, estimate + (estimate * ((1 << scale) - power * estimate) >> scale)
