"""Stochastic rounding to bf16: the same bits from every target.

    x = 1 + 3/4 of a unit in the last place of bf16: up with probability 3/4, down with 1/4

The bits of an fp32 value plus 16 random low bits, cut off behind the upper 16: the mean over all
random bits is the value itself. The random bits are a function of seed, step and the number of the
element in its whole tensor: Philox2x32 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2,
3", SC'11, section 3.3) of 7 rounds, the fewest that pass BigCrush (table 2); 10 would be a margin
for uses that see more of the bits than whether a number was rounded up.

    counter = element number + (parameter << 40) + (entry // 4 << 60)
    key = step + a word made from the seed

One call gives 64 bits, 16 for each of four entries: the parameter and three tensors of its state.
Parameters beyond 2 ** 20, entries beyond 16, steps beyond 2 ** 24 use bits again.
"""

from dataclasses import dataclass

import torch

ROUND = "zc.round_stochastic"
STEPS = 1 << 24  # every step below is a number in fp32, in which kernels get their numbers
_ROUNDS, _MULTIPLIER, _WEYL = 7, 0xD256D193, 0x9E3779B9
_WORD = 0xFFFFFFFF
Words = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the whole that it is a part of.

    Its element i is the element ``start + i // inner * outer + i % inner`` of the whole, which
    ``param`` tells from other wholes.
    """

    param: int
    inner: int
    outer: int
    start: int

    @property
    def first(self) -> int:
        """The counter of element 0."""
        return (self.param % (1 << 20) << 40) + self.start

    def counters(self, like: torch.Tensor) -> torch.Tensor:
        """The counter of every element of a tensor like ``like``."""
        i = torch.arange(like.numel(), device=like.device).view(like.shape)
        return self.first + i // self.inner * self.outer + i % self.inner


def random_words(counter: torch.Tensor, key: int, rounds: int = _ROUNDS) -> Words:
    """The two words that Philox2x32 makes of each counter, an int64."""
    low, high = counter & _WORD, counter >> 32 & _WORD
    for _ in range(rounds):
        product = low * _MULTIPLIER
        low, high = (product >> 32 & _WORD) ^ key ^ high, product & _WORD
        key = key + _WEYL & _WORD
    return low, high


def seed_word(seed: int) -> int:
    """What a seed adds to the key; seeds next to each other are far apart."""
    low, _ = random_words(torch.tensor(seed % (1 << 63)), 0)
    return int(low)


def round_stochastic(
    value: torch.Tensor, step: float, counter: torch.Tensor, seed: int, entry: int
) -> torch.Tensor:
    """``value`` rounded to a number that bf16 has, in fp32: the reference.

    Args:
        value: of any shape; infinities and NaN stay what they are.
        step: a whole number.
        counter: that of every element, see ``Place``.
        seed: a ``seed_word``.
        entry: 0 for the parameter, 1 and more for its state.
    """
    words = random_words(counter + (entry // 4 % 4 << 60), int(step) + seed & _WORD)
    noise = words[entry // 2 % 2] >> 16 * (entry % 2) & 0xFFFF
    value = value.float()
    bits = value.view(torch.int32).to(torch.int64)
    rounded = (bits + noise & ~0xFFFF).to(torch.int32).view(torch.float32)
    return torch.where(value.isnan(), value, rounded)


CPP = """\

struct place { int64_t inner, outer, first; };

static inline uint64_t random_bits(uint64_t counter, uint32_t key) {  // Philox2x32, 7 rounds
    uint32_t low = uint32_t(counter), high = uint32_t(counter >> 32);
    for (int round = 0; round < 7; ++round) {
        const uint32_t upper = uint32_t(uint64_t(0xD256D193u) * low >> 32) ^ key ^ high;
        high = 0xD256D193u * low;
        low = upper;
        key += 0x9E3779B9u;
    }
    return uint64_t(high) << 32 | low;
}

static inline real round_stochastic(real x, real step, uint64_t counter, uint32_t seed,
                                    uint32_t entry) {  // to a number that bf16 has
    const float value = float(x);
    counter += uint64_t(entry / 4 % 4) << 60;
    const uint64_t random = random_bits(counter, uint32_t(step) + seed) >> 16 * (entry % 4);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = (bits + uint32_t(random & 0xffff)) & 0xffff0000u;
    float rounded;
    std::memcpy(&rounded, &bits, 4);
    return value != value ? value : rounded;
}
"""

TRITON = '''\


@triton.jit
def random_words(counter, key):  # Philox2x32, 7 rounds
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    for _ in tl.static_range(7):
        product = low.to(tl.uint64) * 0xD256D193
        low, high = (product >> 32).to(tl.uint32) ^ key ^ high, product.to(tl.uint32)
        key = key + 0x9E3779B9
    return low, high


@triton.jit
def round_stochastic(value, step, counter, seed: tl.constexpr, entry: tl.constexpr):
    """The value as a number that bf16 has."""
    key = tl.full((), step, tl.float32).to(tl.uint32) + tl.full((), seed, tl.uint32)
    low, high = random_words(counter + (entry // 4 % 4 << 60), key)
    word = high if entry // 2 % 2 == 1 else low
    bits = value.to(tl.float32).to(tl.uint32, bitcast=True)
    bits = bits + (word >> 16 * (entry % 2) & 0xFFFF)
    rounded = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(value != value, value, rounded)
'''
