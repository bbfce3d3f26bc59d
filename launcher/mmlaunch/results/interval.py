"""Means with 95 % intervals, in one pass and exact: the order in which rows come changes nothing.

Scores are added as whole multiples of 2^-60, so that sums have no rounding at all. Rows that share an image, directly
or through other rows, are one cluster: their scores are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import blake2b

UNIT = 1 << 60
"""Scores are counted in parts of this size; the mean of any number of rows is off by less than a float is."""
Z = 1.959963984540054
"""The quantile of the normal distribution for 95 %."""
Interval = tuple[float, float]


def mean_of(values: Sequence[float]) -> float:
    """The mean, the same in whatever order."""
    return math.fsum(values) / len(values)


def wilson(score: float, count: float) -> Interval:
    """Wilson's interval of a share of `count` independent rows; it stays between 0 and 1."""
    middle, width = score + Z * Z / (2 * count), math.sqrt(score * (1 - score) / count + Z * Z / (4 * count * count))
    low, high = ((middle + sign * Z * width) / (1 + Z * Z / count) for sign in (-1, 1))
    return max(0.0, min(low, score)), min(1.0, max(high, score))


@dataclass
class Mean:
    """The mean over rows, and its interval with rows clustered by their images.

    It keeps one pair of numbers for each image, and nothing for a row without one.
    """

    count: int = 0
    total: int = 0
    shares: bool = True
    """Whether all values are between 0 and 1."""
    binary: bool = True
    """Whether all values are 0 or 1."""
    _alone: tuple[int, int, int] = (0, 0, 0)
    """Of rows without an image: how many, the sum of their values and the sum of their squares."""
    _by_image: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The sum and the number of rows, by the first image of a row."""
    _above: dict[int, int] = field(default_factory=dict)
    """Another image of the same cluster, where there is one."""

    def add(self, value: float, images: Iterable[str] = ()) -> None:
        """One row."""
        numerator, denominator = value.as_integer_ratio()
        part = (2 * numerator * UNIT + denominator) // (2 * denominator)
        self.count, self.total = self.count + 1, self.total + part
        self.shares, self.binary = self.shares and 0 <= value <= 1, self.binary and value in (0, 1)
        keys = [_key(image) for image in images]
        if not keys:
            count, total, squares = self._alone
            self._alone = count + 1, total + part, squares + part * part
            return
        total, count = self._by_image.get(keys[0], (0, 0))
        self._by_image[keys[0]] = total + part, count + 1
        for other in keys[1:]:
            self._join(keys[0], other)

    @property
    def score(self) -> float | None:
        """None where there is no row."""
        return float(Fraction(self.total, self.count * UNIT)) if self.count else None

    @property
    def interval(self) -> Interval | None:
        """None where nothing can be said: no row, or one cluster of scores without a limit."""
        score, clusters = self.score, self._clusters()
        if score is None:
            return None
        number = self._alone[0] + len(clusters)
        if self.binary and number == self.count:
            return wilson(score, number)
        if number == 1:
            return (0.0, 1.0) if self.shares else None
        spread = math.sqrt(self._variance(clusters, number))
        if self.shares and spread == 0:  # clusters that are all alike say nothing certain of others
            return wilson(score, number)
        low, high = score - Z * spread, score + Z * spread
        return (max(0.0, low), min(1.0, high)) if self.shares else (low, high)

    def _variance(self, clusters: Collection[tuple[int, int]], number: int) -> float:
        """Of a ratio, robust to clusters: G / (G - 1) * sum of (s - r n)^2 / N^2, with r = S / N."""
        rows, total = self.count, self.total
        alone, of_alone, squares = self._alone
        residues = sum((own * rows - total * count) ** 2 for own, count in clusters)
        residues += squares * rows * rows - 2 * rows * total * of_alone + alone * total * total
        return float(Fraction(residues * number, (number - 1) * rows**4 * UNIT * UNIT))

    def _clusters(self) -> Collection[tuple[int, int]]:
        """The sum and the number of rows of each cluster with images."""
        if not self._above:
            return self._by_image.values()  # no row has joined two: nothing to copy
        clusters: dict[int, tuple[int, int]] = {}
        for image, (total, count) in self._by_image.items():
            root = self._root(image)
            before = clusters.get(root, (0, 0))
            clusters[root] = before[0] + total, before[1] + count
        return clusters.values()

    def _root(self, image: int) -> int:
        root = image
        while root in self._above:
            root = self._above[root]
        while image != root:  # shorter the next time
            following = self._above[image]
            self._above[image] = root
            image = following
        return root

    def _join(self, first: int, second: int) -> None:
        first, second = self._root(first), self._root(second)
        if first != second:
            self._above[first] = second


def _key(image: str) -> int:
    """An image as 8 bytes: a million of them fit in memory."""
    return int.from_bytes(blake2b(image.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
