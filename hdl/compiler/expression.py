"""Sums before they are computed: of words of a cell and its neighbours, times whole numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from scotopia.graph.operations import AROUND

#: The fifth of the nine cells around: the cell itself.
CENTRE = AROUND // 2


@dataclass(frozen=True)
class Term:
    """What is added.

    Attributes
    ----------
    word
        Number of a word that is stored; None for 1.
    tap, border
        Of which of the nine neighbours, and what lies beyond the border; "" for the cell's own.
    gate
        A word and which of its bits must be 1 for anything to be added, or None.
    """

    word: int | None
    tap: int = CENTRE
    border: str = ""
    gate: tuple[int, int] | None = None


@dataclass(frozen=True)
class Expression:
    """A sum.

    Attributes
    ----------
    fraction
        Fraction bits of all its numbers.
    terms
        How often each term is added.
    constant
        What is added beside them.
    cut
        Fraction bits of the result, from which all bits below were dropped; None if all were kept.
    linear
        Index of the `Linear` that it is made of, if any: its sums are worth being computed at once.
    """

    fraction: int = 0
    terms: Mapping[Term, int] = field(default_factory=dict)
    constant: int = 0
    cut: int | None = None
    linear: int | None = None

    @classmethod
    def of(cls, term: Term, fraction: int) -> "Expression":
        """Return a term alone, as a word of so many fraction bits."""
        return cls(fraction, {term: 1})

    @property
    def additions(self) -> int:
        """How many it takes."""
        return sum(len(list(signed_digits(times))) for times in self.terms.values())

    def at(self, fraction: int) -> "Expression":
        """Return the same with more fraction bits."""
        shift = fraction - self.fraction
        terms = {term: times << shift for term, times in self.terms.items()}
        return replace(self, fraction=fraction, terms=terms, constant=self.constant << shift)

    def __add__(self, other: "Expression") -> "Expression":
        """Add; see `addable`."""
        fraction = max(self.fraction, other.fraction)
        one, two = self.at(fraction), other.at(fraction)
        terms = dict(one.terms)
        for term, times in two.terms.items():
            terms[term] = terms.get(term, 0) + times
        return Expression(
            fraction,
            {term: times for term, times in terms.items() if times},
            one.constant + two.constant,
            one.cut if two.cut is None else two.cut,
            one.linear if two.linear is None else two.linear,
        )

    def addable(self, other: "Expression") -> bool:
        """Whether what is dropped of the sum is what is dropped of one of the two."""
        if self.cut is not None and other.cut is not None:
            return False
        for one, two in ((self, other), (other, self)):
            if one.cut is not None and two.fraction > one.cut:
                return False
        return True

    def scaled(self, code: int, fraction: int = 0) -> "Expression":
        """Return it times code * 2**-fraction; nothing may have been dropped."""
        assert self.cut is None
        terms = {term: times * code for term, times in self.terms.items() if code}
        return replace(
            self, fraction=self.fraction + fraction, terms=terms, constant=self.constant * code
        )


def signed_digits(number: int) -> Iterator[tuple[int, int]]:
    """Yield (position, +1 or -1) of the canonical signed-digit form: no two digits adjacent."""
    position = 0
    while number:
        if number & 1:
            digit = 2 - (number & 3)  # 1 if the two low bits are 01, -1 if they are 11
            yield position, digit
            number -= digit
        number >>= 1
        position += 1
