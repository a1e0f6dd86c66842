"""numpy.random.default_rng(seed).integers, for the few calls that vLLM's benchmark makes of it.

So that the same seed gives the same requests here as there, without numpy. Sources: O'Neill 2014 (PCG, the XSL-RR
128/64 variant), Lemire 2019 (bounded integers), NumPy's SeedSequence after O'Neill's seed_seq. Ground truth: numpy
itself, in tests/frontend/test_bench.py.
"""

from __future__ import annotations

_MASK32, _MASK64, _MASK128 = 2**32 - 1, 2**64 - 1, 2**128 - 1
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_POOL_WORDS = 4


class IntegerGenerator:
    """The stream of one seed.

    Args:
        seed: below 2**32.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed <= _MASK32:
            raise ValueError(f"seed: {seed}, expected 0 to {_MASK32}")
        words = _generate_state(_mix_entropy(seed), 8)
        halves = [words[place] | words[place + 1] << 32 for place in range(0, 8, 2)]
        self._increment = ((halves[2] << 64 | halves[3]) << 1 | 1) & _MASK128
        self._state = 0
        self._step()
        self._state = (self._state + (halves[0] << 64 | halves[1])) & _MASK128
        self._step()
        self._buffered: int | None = None  # the upper half of a 64-bit number whose lower half has been used

    def integers(self, low: int, high: int, size: int) -> list[int]:
        """`size` numbers from low (included) to high (not included), at most 2**32 - 1 apart."""
        span = high - low
        if not 0 < span <= _MASK32:
            raise ValueError(f"integers: {low} to {high}, expected a span of 1 to {_MASK32}")
        if span == 1:  # nothing to choose: numpy draws nothing
            return [low] * size
        return [low + self._bounded(span) for _ in range(size)]

    def _bounded(self, span: int) -> int:
        product = self._next32() * span
        if product & _MASK32 < span:
            threshold = (2**32 - span) % span
            while product & _MASK32 < threshold:
                product = self._next32() * span
        return product >> 32

    def _next32(self) -> int:
        if self._buffered is not None:
            number, self._buffered = self._buffered, None
            return number
        self._step()
        number = ((self._state >> 64) ^ self._state) & _MASK64
        rotation = self._state >> 122
        number = (number >> rotation | number << (-rotation & 63)) & _MASK64
        self._buffered = number >> 32
        return number & _MASK32

    def _step(self) -> None:
        self._state = (self._state * _MULTIPLIER + self._increment) & _MASK128


def _mix_entropy(seed: int) -> list[int]:
    """SeedSequence's pool of 4 words."""
    constant = 0x43B0D7E5

    def mix_in(value: int) -> int:
        nonlocal constant
        value = (value ^ constant) & _MASK32
        constant = constant * 0x931E8875 & _MASK32
        value = value * constant & _MASK32
        return value ^ value >> 16

    def mix(left: int, right: int) -> int:
        result = (0xCA01F9DD * left - 0x4973F715 * right) & _MASK32
        return result ^ result >> 16

    pool = [mix_in(seed if place == 0 else 0) for place in range(_POOL_WORDS)]
    for source in range(_POOL_WORDS):
        for target in range(_POOL_WORDS):
            if source != target:
                pool[target] = mix(pool[target], mix_in(pool[source]))
    return pool


def _generate_state(pool: list[int], count: int) -> list[int]:
    constant = 0x8B51F9DD
    words = []
    for place in range(count):
        value = pool[place % _POOL_WORDS] ^ constant
        constant = constant * 0x58F38DED & _MASK32
        value = value * constant & _MASK32
        words.append(value ^ value >> 16)
    return words
