"""The routine `step`: all jobs of a step, in planes."""

from collections.abc import Mapping

from scotopia.graph.operations import Random

from ..program import Addend, Flag, Instruction, Program, Word
from .cells import Cells
from .choices import Choices
from .jobs import AnyBit, Both, Choice, Draw, Extreme, Job, Number, Plan, Total
from .schedule import Layer, Schedule
from .sums import Sums


class Step:
    """What computes the words of a step and keeps account of who still reads them.

    Attributes
    ----------
    begun
        Layers that were begun, in their order.
    """

    def __init__(self, cells: Cells, plan: Plan, schedule: Schedule) -> None:
        self.cells, self.plan, self.schedule = cells, plan, schedule
        self.program: Program = cells.program
        graph = plan.graph
        self.begun: list[Layer] = []
        #: Where each word lies, by the word whose planes they are.
        self.places: dict[int, Word] = {
            **{word: self.program.words[name] for name, word in graph.channels.items()},
            **{word: self.program.inputs[name] for name, word in graph.inputs.items()},
        }
        self._fixed = set(self.places)  # words in planes that are never given back
        self._done: set[int] = set()  # channels whose next state is where it is to be
        self._channels = list(graph.channels.values())
        self._random = [
            word
            for index, operation in enumerate(graph.operations)
            if isinstance(operation, Random)
            for word in graph.words(index)
        ]
        self._left: dict[int, int] = {}  # by word, how many groups still read it
        self._sums = Sums(cells, plan.held, self.find)
        self._choices = Choices(cells, plan.held, self.find)

    def find(self, word: int) -> Word:
        """Where a word lies."""
        held = self.plan.held[word]
        base = self.places[held.base]
        if held.base == word:
            return base if base.bits == held.bits else Word(base.plane, held.bits, held.signed)
        return Word(base.plane + held.low, held.bits, held.signed)

    def compute(self, passes: Mapping[Layer, int]) -> None:
        """Write the routine."""
        groups = self.schedule.groups(passes)
        for group in groups:
            for word in {read for job in group for read in self.plan.reads(job)}:
                self._left[word] = self._left.get(word, 0) + 1
        for source in self.plan.outputs:
            if isinstance(source, int):
                base = self.plan.held[source].base
                self._left[base] = self._left.get(base, 0) + 1
        for group in groups:
            self._do(group)
        while self._random:
            self._draw(self._random.pop(0))
        self._hand_over()

    def _do(self, group: list[Job]) -> None:
        reads = {read for job in group for read in self.plan.reads(job)}
        first = group[0]
        if isinstance(first, Draw):
            while first.word not in self.places:
                self._draw(self._random.pop(0))
            return
        self.cells.comment(", ".join(self._name(job.word) for job in group))
        if isinstance(first, Total):
            totals = [job for job in group if isinstance(job, Total)]
            layer = self.schedule.layer(first.word)
            if layer and layer not in self.begun:
                self.begun.append(layer)
            self._sums.compute(
                totals,
                lambda: self._read(reads),
                self._place_of,
                lambda total, word: self.places.update({total.word: word}),
            )
            return
        word = first.word
        if isinstance(first, Extreme):
            found = self._choices.extreme(first)
            self._read(reads)
            self.places[word] = found
            return
        # They may be written where they are read, bit by bit.
        alike = all(self._lies_whole(read, word) for read in first.reads)
        if alike:
            self._left |= {read: self._left[read] - 1 for read in reads}
        place = self._place(word)
        if alike:
            self._left |= {read: self._left[read] + 1 for read in reads}
        held = self.plan.held[word]
        to = place or Word(self.cells.allocate(held.bits), held.bits, held.signed)
        match first:
            case Choice():
                self._choices.choose(first, to)
            case Both():
                self._choices.combine(first, to)
            case AnyBit():
                self._choices.any(first, to)
            case _:
                raise NotImplementedError(type(first).__name__)
        self._read(reads)
        self.places[word] = to

    def _name(self, word: int) -> str:
        """Name of the channel that a word is to be, or its own."""
        for name, source in zip(self.program.words, self.plan.outputs, strict=True):
            if source == word:
                return name
        return self.plan.name(word)

    def _lies_whole(self, word: int, result: int) -> bool:
        """Whether a word is no part of another one, and has the fraction bits of a result."""
        held = self.plan.held
        return held[word].base == word and held[word].fraction == held[result].fraction

    def _place(self, word: int, bits: int = 0) -> Word | None:
        """Planes of the channel that a word is to be, if nobody reads what it was any more."""
        held = self.plan.held
        for channel, source in zip(self._channels, self.plan.outputs, strict=True):
            if source == word:
                old = held[channel]
                fits = old.fraction == held[word].fraction
                fits &= old.bits >= max(bits, held[word].bits)
                if fits and not self._left.get(channel):
                    self._fixed.add(word)
                    self._done.add(channel)
                    return self.places[channel]
                return None
        return None

    def _place_of(self, total: Total) -> Word | None:
        if total.sign:
            return None
        return self._place(total.word, total.limit.bits if total.limit else 0)

    def _read(self, words: set[int]) -> None:
        """Release words that nobody else reads."""
        for word in words:
            self._left[word] -= 1
            if not self._left[word] and word not in self._fixed:
                place = self.places[word]
                self.cells.release(place.plane, place.bits)

    # Random bits.

    def _draw(self, word: int) -> None:
        """Draw a number, the highest bit first; keep it if it is read."""
        operation, lane = self.plan.graph.made_by(word)
        assert isinstance(operation, Random)
        bits = operation.bits[lane]
        kept = self._left.get(word)
        if kept:
            self.places[word] = Word(self.cells.allocate(bits), bits, signed=False)
        for bit in reversed(range(bits)):
            self.cells.emit(Instruction(1, flag=Flag.NOISE))
            if kept:
                plane = self.places[word].plane + bit
                self.cells.emit(Instruction(1, write=plane, write_bits=1, addend=Addend.FLAG))

    # The next state.

    def _hand_over(self) -> None:
        """Copy what is the next state, and not yet where its channel is."""
        waiting: list[tuple[Word, Word | Number, int]] = []
        outputs = zip(self._channels, self.program.words.values(), self.plan.outputs, strict=True)
        for channel, place, source in outputs:
            fraction = self.plan.held[channel].fraction
            if isinstance(source, Number):
                waiting.append((place, source, fraction - source.fraction))
                continue
            if source == channel or channel in self._done:
                continue
            held, word = self.plan.held[source], self.find(source)
            if held.base in self._fixed:  # perhaps a channel that is copied to before
                copy = Word(self.cells.allocate(word.bits), word.bits, word.signed)
                self.cells.copy(word, copy)
                word = copy
            waiting.append((place, word, fraction - held.fraction))
        for place, what, zeros in waiting:
            if isinstance(what, Number):
                self.cells.write(place.plane, what.code << zeros, place.bits)
                continue
            if zeros:
                self.cells.write(place.plane, 0, zeros)
            above = Word(place.plane + zeros, place.bits - zeros, place.signed)
            self.cells.copy(what, above)
