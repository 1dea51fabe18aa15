"""Counts of a stream of any length in a fixed amount of memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class SeenBefore:
    """A Bloom filter: says of a key whether it was added before; never "no" for one that was.

    With 2^27 bits (16 MiB) and 4 probes a new key is taken for an old one in 1 of 10^6 cases after 10^6 keys, and in
    1 of 200 after 10^7.
    """

    def __init__(self, bits: int = 1 << 27):
        self._mask = bits - 1
        self._bytes = bytearray(bits // 8)

    def add(self, key: int) -> bool:
        """Add a key of 64 bits; returns whether it was there already."""
        table, mask = self._bytes, self._mask
        step = (key >> 32) | 1
        seen = True
        for _ in range(4):
            at = key & mask
            bit = 1 << (at & 7)
            if not table[at >> 3] & bit:
                table[at >> 3] |= bit
                seen = False
            key += step
        return seen

    def __contains__(self, key: int) -> bool:
        table, mask = self._bytes, self._mask
        step = (key >> 32) | 1
        return all(table[((key + n * step) & mask) >> 3] & (1 << ((key + n * step) & mask & 7)) for n in range(4))


class FrequentItems:
    """The most frequent items of a stream (Misra and Gries, 1982).

    A count is too small by at most `error`, and every item that occurs more often than that is there.
    """

    def __init__(self, capacity: int = 8192):
        self.capacity = capacity
        self.counts: Counter[tuple[str, str]] = Counter()
        self.error = 0

    def update(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add counts of items."""
        self.counts.update(counts)
        if len(self.counts) > 2 * self.capacity:
            floor = sorted(self.counts.values(), reverse=True)[self.capacity]
            self.counts = Counter({item: count - floor for item, count in self.counts.items() if count > floor})
            self.error += floor

    def most_common(self, count: int) -> list[tuple[tuple[str, str], int]]:
        """The most frequent items with their counts, ties in the order of the items."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:count]
