"""Jobs: what makes the words that are stored, and how they are stored."""

from dataclasses import dataclass, field
from functools import cached_property

from scotopia.graph.intervals import Interval
from scotopia.graph.qformat import Rounding
from scotopia.graph.step import StepGraph

from .expression import Expression

#: Roundings that add the same to every sum. The others look at it: at its sign, or whether it is
#: odd.
EARLY = (Rounding.TRN, Rounding.RND, Rounding.RND_MIN_INF)


@dataclass(frozen=True)
class Held:
    """How a word is stored: code = value * 2**fraction.

    Attributes
    ----------
    interval
        What its code can be.
    base, low
        The word whose bits it is a part of, and the lowest of them; the word itself and 0 if it is
        none.
    """

    interval: Interval
    bits: int
    signed: bool
    fraction: int
    base: int
    low: int = 0


@dataclass(frozen=True)
class Number:
    """What is the same in all cells: code * 2**-fraction."""

    code: int
    fraction: int


#: A word that is stored, or a number.
Source = int | Number


@dataclass(frozen=True)
class Job:
    """What makes a word."""

    word: int

    @property
    def reads(self) -> set[int]:
        """Words that it reads."""
        return set()


@dataclass(frozen=True)
class Draw(Job):
    """A random number."""


@dataclass(frozen=True)
class Total(Job):
    """A sum, rounded and brought into a range; or whether it is negative.

    Attributes
    ----------
    bounds
        What the sum can be, before any of its bits is dropped; None if no more is known than of its
        terms.
    fraction
        Fraction bits that are kept.
    limit
        What the result is brought into; None, if it is inside or wraps.
    below, above
        Whether it can lie beyond the limit's lowest and highest.
    sign
        Whether the result is 1 where the sum is negative; -1: where it is not.
    """

    expression: Expression
    bounds: Interval | None = None
    fraction: int = 0
    rounding: Rounding = Rounding.TRN
    limit: Interval | None = None
    below: bool = False
    above: bool = False
    sign: int = 0

    @property
    def reads(self) -> set[int]:
        """See `Job`."""
        terms = self.expression.terms
        return {term.word for term in terms if term.word is not None} | {
            term.gate[0] for term in terms if term.gate
        }


@dataclass(frozen=True)
class Choice(Job):
    """A word where a bit is 1, and another one where it is 0."""

    condition: int
    a: Source
    b: Source

    @property
    def reads(self) -> set[int]:
        """See `Job`."""
        return {word for word in (self.condition, self.a, self.b) if isinstance(word, int)}


@dataclass(frozen=True)
class Both(Job):
    """Of two bits: whether both are 1."""

    a: int
    b: int

    @property
    def reads(self) -> set[int]:
        """See `Job`."""
        return {self.a, self.b}


class Either(Both):
    """Of two bits: whether one is 1."""


class OnlySecond(Both):
    """Of two bits: whether the second is 1 and the first is not."""


@dataclass(frozen=True)
class AnyBit(Job):
    """Whether any bit of a word is 1."""

    a: int

    @property
    def reads(self) -> set[int]:
        """See `Job`."""
        return {self.a}


@dataclass(frozen=True)
class Extreme(Job):
    """See `operations.Window`."""

    a: int
    largest: bool
    border: str

    @property
    def reads(self) -> set[int]:
        """See `Job`."""
        return {self.a}


@dataclass
class Plan:
    """All jobs of a step.

    Attributes
    ----------
    held
        All words that are stored, or are a part of one that is.
    jobs
        What makes each word, other than channels and inputs. In an order in which they can be done.
    outputs
        What each channel becomes.
    """

    graph: StepGraph
    held: dict[int, Held] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    outputs: list[Source] = field(default_factory=list)

    def reads(self, job: Job) -> set[int]:
        """Words whose planes a job reads."""
        return {self.held[word].base for word in job.reads}

    def name(self, word: int) -> str:
        """Return a word's name, for a listing."""
        return self.graph.name(word) if word < self.graph.count else "comparison"

    @cached_property
    def moved(self) -> set[int]:
        """Words that are added as operands to many sums, or come from neighbours."""
        found = set()
        for job in self.jobs.values():
            if isinstance(job, Extreme):
                found.add(job.a)
            elif isinstance(job, Total) and job.expression.linear is not None:
                terms = job.expression.terms
                found |= {term.word for term in terms if term.word is not None and not term.gate}
        return found
