"""An outside truth: classical cellular automata as integer rules.

Everything else in the proof compares the product with itself, from the golden model down. Here the
right answers come from elsewhere: Life and its kin were defined, and what becomes of their patterns
was published, long before. Each automaton is here twice, and the two share nothing: as a transition
function on a set of cells, in the words of its definition, and as the weights of a step graph.
That a small network computes such an automaton exactly, one neuron or two for each count of
neighbours that matters, is from Gilpin, "Cellular automata as convolutional neural networks"
(Physical Review E 100, 032402, 2019).

Only the encoding is our own: a channel of one bit for each state but that of rest. A pattern is the
rule's first state.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from scotopia.graph import processes
from scotopia.graph.build import Builder
from scotopia.graph.errors import InputError
from scotopia.graph.operations import Border
from scotopia.graph.qformat import IntArray, QFormat
from scotopia.graph.surroundings import Initial
from scotopia.hdl.emit import emit
from scotopia.hdl.program import Program
from scotopia.quantize.integer_rule import GraphRule

from .check import Check, Verdict
from .compare import compare
from .simulators import Bench, Build
from .stimulus import Stimulus
from .verify import run_program

Place = tuple[int, int]  #: row and column

#: The cells that are in another state than 0, and their states.
World = dict[Place, int]

#: Worlds by their generation, in order; not always all of them.
History = Mapping[int, World]

#: The eight neighbours in reading order: north-west first.
AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)

#: The four of von Neumann's neighbourhood among them.
ORTHOGONAL = (1, 3, 4, 6)

#: Of the bit that says whether a cell is in a state.
BIT = QFormat(1, 0, signed=False)

#: The next state of a cell, by its own and those `AROUND` it.
Transition = Callable[[int, Sequence[int]], int]


@dataclass(frozen=True, eq=False)
class Neuron:
    """A neuron that is 1 where a weighted count of cells reaches a threshold, and else 0.

    It is one bit, unsigned: where a sum of integers saturates at both its ends, it is a step.

    Attributes
    ----------
    weight
        (states - 1, 3, 3) of the cells around in state 1, 2, ...
    threshold
        At least 1, so that what is at rest stays so.
    """

    weight: IntArray
    threshold: int


@dataclass(frozen=True, eq=False)
class Network:
    """The next state by neurons: whether it is n + 1 is outputs[n] . neurons."""

    neurons: tuple[Neuron, ...]
    outputs: IntArray


@dataclass(frozen=True, eq=False)
class Automaton:
    """A cellular automaton: its definition, and the same as weights.

    Attributes
    ----------
    name
        What it is called.
    definition
        In a line, with the source.
    states
        How many, the state of rest (0) included.
    transition
        The definition.
    network
        The same as weights.
    """

    name: str
    definition: str
    states: int
    transition: Transition
    network: Network

    def step(
        self, world: World, shape: Place | None = None, border: Border = "zero"
    ) -> dict[Place, int]:
        """Return the next generation by the definition.

        Parameters
        ----------
        shape
            Height and width of the world; None: the infinite plane.
        border
            What cells at the border of a world see beyond it: cells at rest, those at the border
            themselves, or the opposite side.
        """

        def seen(y: int, x: int) -> Place:
            if shape is None or border == "zero":
                return y, x
            if border == "wrap":
                return y % shape[0], x % shape[1]
            return min(max(y, 0), shape[0] - 1), min(max(x, 0), shape[1] - 1)

        after = {}
        for y, x in {seen(y + dy, x + dx) for y, x in world for dy, dx in (*AROUND, (0, 0))}:
            if shape is None or (0 <= y < shape[0] and 0 <= x < shape[1]):
                around = [world.get(seen(y + dy, x + dx), 0) for dy, dx in AROUND]
                if state := self.transition(world.get((y, x), 0), around):
                    after[y, x] = state
        return after

    def rule(
        self, border: Border, steps_per_frame: int = 1, start: IntArray | None = None
    ) -> GraphRule:
        """Return the automaton as a rule, with its range proof; `start` as in `Trial.codes`."""
        build, live = Builder(), self.states - 1
        cells = build.channels({f"state {number}": BIT for number in range(1, self.states)})
        weight = np.stack([neuron.weight.reshape(live, 9) for neuron in self.network.neurons])
        bias = [1 - neuron.threshold for neuron in self.network.neurons]
        neurons = build.linear(cells, weight, bias, border).fit(BIT)
        after = build.linear(neurons, self.network.outputs[:, :, None], np.zeros(live)).fit(BIT)
        graph = build.graph({f"state {number + 1}": one for number, one in enumerate(after)})
        none = np.zeros(live)
        initial = Initial.zeros(live) if start is None else Initial(none, start.astype(float), none)
        return GraphRule(graph, steps_per_frame, initial=initial).with_proof()


# The automata.

MOORE = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
CENTRE = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
VON_NEUMANN = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def counting(weight: IntArray, accepted: Collection[int]) -> Network:
    """Network of two states: alive where a weighted count of live cells is one of the accepted.

    Raises
    ------
    InputError
        If 0 is accepted: a world at rest would not stay so, and a set of live cells is not all.
    """
    if 0 in accepted:
        raise InputError("count 0 makes live cells of nothing: choose counts of 1 or more")
    edges = [
        count
        for count in range(1, int(weight.sum()) + 2)
        if (count in accepted) != (count - 1 in accepted)
    ]
    neurons = tuple(Neuron(weight[None], edge) for edge in edges)
    return Network(neurons, np.array([[1 if edge in accepted else -1 for edge in edges]]))


def life_like(name: str, source: str, born: set[int], survives: set[int]) -> Automaton:
    """Automaton of two states in which a count of eight neighbours decides."""

    def transition(cell: int, around: Sequence[int]) -> int:
        return int(sum(around) in (survives if cell else born))

    # Twice the neighbours, plus the cell: tells a birth (even) from a survival (odd).
    accepted = {2 * count for count in born} | {2 * count + 1 for count in survives}
    digits = ("".join(map(str, sorted(counts))) for counts in (born, survives))
    return Automaton(
        name,
        "B{}/S{}; {}".format(*digits, source),
        2,
        transition,
        counting(2 * MOORE + CENTRE, accepted),
    )


LIFE = life_like(
    "Life", 'Gardner, "Mathematical Games", Scientific American 223/4, 1970', {3}, {2, 3}
)
HIGHLIFE = life_like("HighLife", "Thompson, 1994; LifeWiki, OCA:HighLife", {3, 6}, {2, 3})
DAY_AND_NIGHT = life_like(
    "Day & Night", "Thompson, 1997; LifeWiki, OCA:Day & Night", {3, 6, 7, 8}, {3, 4, 6, 7, 8}
)


def _parity(cell: int, around: Sequence[int]) -> int:
    return sum(around[i] for i in ORTHOGONAL) % 2


FREDKIN = Automaton(
    "Fredkin's replicator",
    "the parity of the four orthogonal neighbours; Banks, "
    '"Information processing and transmission in cellular automata", MIT, 1971',
    2,
    _parity,
    counting(VON_NEUMANN, {1, 3}),
)


def _rule_30(cell: int, around: Sequence[int]) -> int:
    left, centre, right = around[:3]
    return cell or 30 >> (4 * left + 2 * centre + right) & 1


#: It alone tells north from south and east from west.
RULE_30 = Automaton(
    "Rule 30",
    "each row is made from the one above, and stays; "
    'Wolfram, "Statistical mechanics of cellular automata", Rev. Mod. Phys. 55, 1983',
    2,
    _rule_30,
    counting(np.array([[4, 2, 1], [0, 8, 0], [0, 0, 0]]), {1, 2, 3, 4, *range(8, 16)}),
)


def _brains_brain(cell: int, around: Sequence[int]) -> int:
    if cell == 0:
        return int(around.count(1) == 2)
    return 2 if cell == 1 else 0


def _greenberg_hastings(cell: int, around: Sequence[int]) -> int:
    if cell == 0:
        return int(any(around[i] == 1 for i in ORTHOGONAL))
    return (cell + 1) % 3


def _wireworld(cell: int, around: Sequence[int]) -> int:
    if cell == 3:
        return 1 if around.count(1) in (1, 2) else 3
    return {0: 0, 1: 2, 2: 3}[cell]


NONE = 0 * CENTRE

#: The cell fires (state 1), and so is refractory (state 2) next.
_FIRES = Neuron(np.stack([CENTRE, NONE]), 1)

BRIANS_BRAIN = Automaton(
    "Brian's Brain",
    "ready (0) fires with exactly two firing (1) neighbours, which are refractory (2) then; "
    "Silverman; LifeWiki, OCA:Brian's Brain",
    3,
    _brains_brain,
    Network(
        (
            Neuron(np.stack([MOORE - 8 * CENTRE, -8 * CENTRE]), 2),
            Neuron(np.stack([MOORE - 8 * CENTRE, -8 * CENTRE]), 3),
            _FIRES,
        ),
        np.array([[1, -1, 0], [0, 0, 1]]),
    ),
)

GREENBERG_HASTINGS = Automaton(
    "Greenberg-Hastings",
    "rest (0) is excited (1) by any of four excited neighbours, then refractory (2); Greenberg, "
    'Hastings, "Spatial patterns for discrete models of diffusion in excitable media", 1978',
    3,
    _greenberg_hastings,
    Network(
        (Neuron(np.stack([VON_NEUMANN - 4 * CENTRE, -4 * CENTRE]), 1), _FIRES),
        np.array([[1, 0], [0, 1]]),
    ),
)

WIREWORLD = Automaton(
    "Wireworld",
    "electron head (1), tail (2), conductor (3), which one or two heads around make a head; "
    'Silverman; Dewdney, "Computer Recreations", Scientific American 262/1, 1990',
    4,
    _wireworld,
    Network(
        (
            # A conductor with a head at least, and with three at least.
            Neuron(np.stack([MOORE, NONE, 8 * CENTRE]), 9),
            Neuron(np.stack([MOORE, NONE, 8 * CENTRE]), 11),
            Neuron(np.stack([CENTRE, NONE, NONE]), 1),
            Neuron(np.stack([NONE, CENTRE, NONE]), 1),
            Neuron(np.stack([NONE, NONE, CENTRE]), 1),
        ),
        np.array([[1, -1, 0, 0, 0], [0, 0, 1, 0, 0], [-1, 1, 0, 1, 1]]),
    ),
)


# Patterns, and what is known of them.


@dataclass(frozen=True, eq=False)
class Trial:
    """A pattern, where it runs, and what is published about it.

    Attributes
    ----------
    automaton
        That it is a pattern of.
    name
        What it is called.
    start
        Generation 0.
    shape, border
        Height, width and border of the array.
    generations
        How many to run at least: whole frames are run.
    fact
        What is known, in a few words, and where it is published.
    holds
        Whether a history and shape are so.
    plane
        Whether the definition runs on the infinite plane, folded to the array's torus; else in a
        world of the array's shape and border.
    steps_per_frame
        Of the rule.
    every
        Only the states after every so many steps are compared.
    """

    automaton: Automaton
    name: str
    start: World
    shape: Place
    border: Border
    generations: int
    fact: str
    holds: Callable[[History, Place], bool]
    plane: bool = False
    steps_per_frame: int = 1
    every: int = 1

    @property
    def title(self) -> str:
        """Name of its check."""
        return f"{self.automaton.name}: {self.name}"

    @property
    def steps(self) -> int:
        """Steps in all, a generation each."""
        return -(-self.generations // self.steps_per_frame) * self.steps_per_frame

    @property
    def compared(self) -> list[int]:
        """Generations after which the states are compared."""
        return list(range(self.every, self.steps + 1, self.every))

    def history(self) -> dict[int, World]:
        """Worlds by the definition at generation 0 and those that are compared.

        Raises
        ------
        ValueError
            If two cells of the plane would be the same in the array.
        """
        worlds, world, compared = {}, self.start, self.compared
        for generation in range(compared[-1] + 1):
            if generation:
                shape = None if self.plane else self.shape
                world = self.automaton.step(world, shape, self.border)
            if not generation or generation in compared:
                worlds[generation] = moved(world, 0, 0, self.shape)
                if len(worlds[generation]) != len(world):
                    raise ValueError(f"{self.title} does not fit {self.shape}")
        return worlds

    def codes(self, world: World) -> IntArray:
        """Channels, (states - 1, H, W), that a world stands for."""
        codes = np.zeros((self.automaton.states - 1, *self.shape), np.int64)
        for (y, x), state in world.items():
            codes[state - 1, y, x] = 1
        return codes

    def worlds(self, codes: IntArray) -> dict[int, World]:
        """Undo `codes`."""
        worlds: dict[int, World] = {generation: {} for generation in self.compared}
        for index, channel, y, x in np.argwhere(codes).tolist():
            worlds[self.compared[index]][y, x] = channel + 1
        return worlds

    def rule(self) -> GraphRule:
        """Return the automaton as a rule that starts from the pattern."""
        return self.automaton.rule(self.border, self.steps_per_frame, self.codes(self.start))

    def stimulus(self, rule: GraphRule) -> Stimulus:
        """Return as many frames as it takes, and what the golden model makes of them."""
        frames = np.zeros((self.steps // self.steps_per_frame, *self.shape))
        return Stimulus.of(rule, frames, frames > 0, self.every)


def drawn(text: str, y: int = 0, x: int = 0) -> World:
    """Read lines of characters, with the corner at (y, x).

    A state is a digit, or O for 1; what else there is, is at rest.
    """
    states = {"O": 1} | {str(digit): digit for digit in range(1, 10)}
    return {
        (y + row, x + column): states[character]
        for row, line in enumerate(text.split())
        for column, character in enumerate(line)
        if character in states
    }


def moved(world: World, dy: int, dx: int, shape: Place) -> World:
    """Move a world on a torus."""
    return {((y + dy) % shape[0], (x + dx) % shape[1]): s for (y, x), s in world.items()}


def soup(seed: int, shares: Sequence[float], shape: Place) -> World:
    """Draw each cell's state, of which each has its share."""
    states = np.random.default_rng(seed).choice(len(shares), shape, p=shares)
    return {(y, x): int(states[y, x]) for y, x in np.argwhere(states).tolist()}


def alive(history: History, shape: Place) -> bool:
    """Whether there is always something to compare."""
    return all(history.values())


def census(world: World, shape: Place) -> list[int]:
    """Sizes of the islands of cells that touch, in order, on a torus."""
    left, sizes = set(world), []
    while left:
        island = [left.pop()]
        for y, x in island:
            touching = {((y + dy) % shape[0], (x + dx) % shape[1]) for dy, dx in AROUND} & left
            left -= touching
            island += touching
        sizes.append(len(island))
    return sorted(sizes)


def _glides(history: History, shape: Place) -> bool:
    pairs = [(g, g + 4) for g in history if g + 4 in history]
    return bool(pairs) and all(history[b] == moved(history[a], 1, 1, shape) for a, b in pairs)


def _oscillates(period: int) -> Callable[[History, Place], bool]:
    """Whether every generation comes back after a period, and not before."""

    def holds(history: History, shape: Place) -> bool:
        worlds = list(history.values())
        return len(worlds) > period and all(
            (before == after) == (distance == period)
            for distance in range(1, period + 1)
            for before, after in zip(worlds, worlds[distance:], strict=False)
        )

    return holds


def _pulsates(history: History, shape: Place) -> bool:
    sizes = [len(world) - 3 for world in history.values()]  # all but the blinker
    return _oscillates(6)(history, shape) and sizes == ([48, 56, 72] * len(sizes))[: len(sizes)]


def _shoots(history: History, shape: Place) -> bool:
    return all(
        GUN.items() <= history[30 * count].items()
        and census(dict(history[30 * count].items() - GUN.items()), shape) == [5] * count
        for count in range(max(history) // 30 + 1)
    )


def _settles(history: History, shape: Place) -> bool:
    # Eight blocks, six gliders, four beehives, four blinkers, one boat, one loaf, one ship.
    sizes = sorted([4] * 8 + [5] * 6 + [6] * 4 + [3] * 4 + [5] + [7] + [6])
    return len(history[1104]) == 116 and census(history[1104], shape) == sizes


def _replicates(history: History, shape: Place) -> bool:
    return all(
        history[12 * (copies - 1)]
        == {
            place: state
            for copy in range(copies)
            for place, state in moved(
                history[0], 4 * copy - 2 * (copies - 1), 4 * copy - 2 * (copies - 1), shape
            ).items()
        }
        for copies in (2, 4, 8)
    )


def _fourfold(history: History, shape: Place) -> bool:
    return all(
        history[distance]
        == {
            place: state
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
            for place, state in moved(history[0], distance * dy, distance * dx, shape).items()
        }
        for distance in (8, 16)
    )


def _complements(history: History, shape: Place) -> bool:
    places = set(np.ndindex(shape))
    return all(
        set(moved(world, 0, shape[1] // 2, shape)) == places - set(world)
        for world in history.values()
    )


#: Wolfram's and OEIS's: the middle column of Rule 30 from a lone 1.
A051023 = "11011100110001011001001110"


def _random_column(history: History, shape: Place) -> bool:
    world = history[max(history)]
    column = "".join(str(world.get((y, shape[1] // 2), 0)) for y in range(shape[0]))
    return len(column) == len(A051023) and column == A051023


def _light_diamond(history: History, shape: Place) -> bool:
    """Whether the diamond's tips of two firing cells go on by a cell in each generation."""
    middle_y, middle_x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    return all(
        {place for place, state in world.items() if state == 1}
        == {
            (y, x)
            for y, x in np.ndindex(shape)
            if abs(y - middle_y) + abs(x - middle_x) == generation + 1
        }
        for generation, world in history.items()
    )


def _ring(history: History, shape: Place) -> bool:
    """Whether what is excited in generation g is what is g cells away, until nothing is."""
    centre_y, centre_x = min(history[0])
    return not history[max(history)] and all(
        {place for place, state in world.items() if state == 1}
        == {
            (y, x)
            for y, x in np.ndindex(shape)
            if abs(y - centre_y) + abs(x - centre_x) == generation
        }
        for generation, world in history.items()
    )


def _winds(history: History, shape: Place) -> bool:
    """Whether each block of 2 x 2 cells keeps its winding number, and some have one."""

    def numbers(world: World) -> list[int]:
        return [
            sum(
                (world.get((y + b, x + a), 0) - world.get((y + d, x + c), 0) + 1) % 3 - 1
                for (d, c), (b, a) in pairwise([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)])
            )
            for y, x in np.ndindex(shape[0] - 1, shape[1] - 1)
        ]

    first = numbers(history[0])
    return any(first) and all(numbers(world) == first for world in history.values())


def _rectifies(history: History, shape: Place) -> bool:
    heads = [
        {row for row in (1, 5) if world.get((row, shape[1] - 1)) == 1} for world in history.values()
    ]
    return heads.count({1}) == 1 and heads.count(set()) == len(heads) - 1


def _ticks(history: History, shape: Place) -> bool:
    ticks = [g for g, world in history.items() if world.get((1, shape[1] - 1)) == 1]
    return len(ticks) > 3 and all(after - before == 10 for before, after in pairwise(ticks))


GUN = drawn("""
    ........................O...........
    ......................O.O...........
    ............OO......OO............OO
    ...........O...O....OO............OO
    OO........O.....O...OO..............
    OO........O...O.OO....O.O...........
    ..........O.....O.......O...........
    ...........O...O....................
    ............OO......................
""")

PULSAR = drawn(
    """
    ..OOO...OOO..
    .............
    O....O.O....O
    O....O.O....O
    O....O.O....O
    ..OOO...OOO..
    .............
    ..OOO...OOO..
    O....O.O....O
    O....O.O....O
    O....O.O....O
    .............
    ..OOO...OOO..
    """,
    y=3,
    x=3,
)


def _half_soup(seed: int, shape: Place) -> World:
    """Draw the left half, and make the right half its complement."""
    height, half = shape[0], shape[1] // 2
    left = soup(seed, (0.5, 0.5), (height, half))
    return left | {(y, half + x): 1 for y, x in np.ndindex(height, half) if (y, x) not in left}


DIODES = """
    ......33......
    2133333.333333
    ......33......
    ..............
    ......33......
    213333.3333333
    ......33......
"""
CLOCK = """
    .2133.........
    3....333333333
    .3333.........
"""

#: The trials, those of one array next to each other: it is built once. LifeWiki is at
#: conwaylife.com/wiki. Of a soup nothing is known but what the definition says.
TRIALS = (
    Trial(
        LIFE,
        "glider",
        drawn(".O. ..O OOO"),
        (32, 32),
        "wrap",
        64,
        "moves (1, 1) in 4 generations (LifeWiki, Glider)",
        _glides,
    ),
    Trial(
        LIFE,
        "blinker and pulsar",
        PULSAR | drawn("OOO", 24, 24),
        (32, 32),
        "wrap",
        60,
        "periods 2 and 3, with 48, 56 and 72 cells in the pulsar (LifeWiki, Pulsar)",
        _pulsates,
    ),
    Trial(
        LIFE,
        "soup on a torus",
        soup(1, (0.7, 0.3), (32, 32)),
        (32, 32),
        "wrap",
        100,
        "as defined",
        alive,
    ),
    Trial(
        LIFE,
        "Gosper's gun",
        GUN,
        (35, 48),
        "zero",
        120,
        "a glider every 30 generations (LifeWiki, Gosper glider gun)",
        _shoots,
        plane=True,
    ),
    Trial(
        LIFE,
        "soup in a dead world",
        soup(2, (0.7, 0.3), (35, 48)),
        (35, 48),
        "zero",
        100,
        "as defined",
        alive,
    ),
    Trial(
        LIFE,
        "soup within mirrors",
        soup(3, (0.7, 0.3), (23, 26)),
        (23, 26),
        "replicate",
        100,
        "as defined",
        alive,
    ),
    # The smallest torus in which nothing meets that does not meet on the plane; found by trying.
    Trial(
        LIFE,
        "R-pentomino",
        drawn(".OO OO. .O."),
        (132, 214),
        "wrap",
        1104,
        "stable from 1103 on: 8 blocks, 6 gliders, 4 beehives, 4 blinkers, boat, loaf, ship "
        "(LifeWiki, R-pentomino)",
        _settles,
        plane=True,
        steps_per_frame=48,
        every=48,
    ),
    Trial(
        HIGHLIFE,
        "replicator",
        drawn("..OOO .O..O O...O O..O. OOO..", 16, 16),
        (38, 38),
        "wrap",
        84,
        "2^n copies, 4 cells apart, at generation 12 (2^n - 1) (LifeWiki, OCA:HighLife)",
        _replicates,
        plane=True,
    ),
    Trial(
        HIGHLIFE,
        "soup on a torus",
        soup(4, (0.7, 0.3), (38, 38)),
        (38, 38),
        "wrap",
        60,
        "as defined",
        alive,
    ),
    Trial(
        DAY_AND_NIGHT,
        "soup and its complement",
        _half_soup(5, (24, 32)),
        (24, 32),
        "wrap",
        100,
        "what is complementary stays so (LifeWiki, OCA:Day & Night)",
        _complements,
    ),
    Trial(
        FREDKIN,
        "an E",
        drawn("OOO O.. OOO O.. OOO", 18, 19),
        (40, 40),
        "zero",
        16,
        "four copies after 8 and after 16 generations (Banks, 1971)",
        _fourfold,
        plane=True,
    ),
    Trial(
        RULE_30,
        "lone 1",
        {(0, 26): 1},
        (26, 53),
        "zero",
        26,
        "the middle column is OEIS A051023",
        _random_column,
    ),
    Trial(
        BRIANS_BRAIN,
        "block",
        drawn("11 11", 15, 15),
        (32, 32),
        "wrap",
        13,
        "a diamond that grows with the speed of light (Wikipedia, Brian's Brain)",
        _light_diamond,
        plane=True,
    ),
    Trial(
        BRIANS_BRAIN,
        "oscillator",
        drawn("..1. 122. .221 .1..", 9, 9),
        (32, 32),
        "wrap",
        30,
        "period 3 (LifeWiki, OCA:Brian's Brain)",
        _oscillates(3),
    ),
    Trial(
        BRIANS_BRAIN,
        "soup on a torus",
        soup(6, (0.6, 0.2, 0.2), (32, 32)),
        (32, 32),
        "wrap",
        60,
        "as defined",
        alive,
    ),
    Trial(
        GREENBERG_HASTINGS,
        "one excited cell",
        {(12, 12): 1},
        (25, 24),
        "replicate",
        30,
        "a ring that goes by a cell in each generation, and dies (Greenberg, Hastings, 1978)",
        _ring,
    ),
    Trial(
        GREENBERG_HASTINGS,
        "soup within mirrors",
        soup(7, (0.6, 0.2, 0.2), (25, 24)),
        (25, 24),
        "replicate",
        60,
        "winding numbers are kept, so it persists (Greenberg, Greene, Hastings, 1980)",
        _winds,
    ),
    Trial(
        WIREWORLD,
        "two diodes",
        drawn(DIODES),
        (7, 14),
        "zero",
        24,
        "one conducts, its mirror image does not (quinapalus.com, Wires)",
        _rectifies,
    ),
    Trial(
        WIREWORLD,
        "clock",
        drawn(CLOCK),
        (7, 14),
        "zero",
        64,
        "a loop of 10 cells sends an electron every 10 generations (Dewdney, 1990)",
        _ticks,
    ),
    Trial(
        WIREWORLD,
        "soup in a dead world",
        soup(8, (0.2, 0.1, 0.1, 0.6), (7, 14)),
        (7, 14),
        "zero",
        60,
        "as defined",
        alive,
    ),
)


# The proof.


def prove(
    simulator: str = "verilator",
    *,
    on_check: Callable[[str], None] = lambda name: None,
    only: Collection[str] | None = None,
    trials: Sequence[Trial] = TRIALS,
) -> list[Check]:
    """Run each trial on the golden model, the program's twin and the emitted Verilog.

    With Icarus, choose small ones: the R-pentomino's array is too large for it.

    Every state that is read is compared with the definition's world, cell by cell. Then what is
    known of the pattern must hold of the worlds that the Verilog made.

    Parameters
    ----------
    on_check
        Called with the name of each check before it runs.
    only
        Names of checks to run; None: all.
    trials
        What to run.

    Raises
    ------
    InputError
        If there is no check of a name, or a tool is missing.
    """
    if unknown := sorted(set(only or ()) - {trial.title for trial in trials}):
        names = ", ".join(trial.title for trial in trials)
        raise InputError(f"check {unknown[0]!r} of automata is unknown: choose out of {names}")
    chosen = [trial for trial in trials if only is None or trial.title in only]
    checks = []

    def array(trial: Trial) -> tuple[Automaton, Border, Place, int]:
        return trial.automaton, trial.border, trial.shape, trial.steps_per_frame

    with Bench(simulator) as bench, processes.temporary_folder() as work:
        for number, (_, group) in enumerate(groupby(chosen, array)):
            build: Build | None = None
            for trial in group:
                on_check(trial.title)
                start = time.perf_counter()
                rule = trial.rule()
                program = Program.compile(rule)
                if build is None:
                    folder = Path(work, str(number))
                    emit(program, *trial.shape, folder)
                    build = bench.build(rule, folder, *trial.shape)
                stimulus = trial.stimulus(rule)
                stages = {
                    "golden model": stimulus.expected,
                    "program": run_program(program, stimulus),
                    f"Verilog ({simulator.capitalize()})": replace(build, rule=rule).run(stimulus)[
                        0
                    ],
                }
                wrong, detail = judge(trial, stages)
                checks.append(
                    Check(
                        "automata",
                        trial.title,
                        Verdict.FAILED if wrong else Verdict.PASSED,
                        len(trial.compared) * trial.shape[0] * trial.shape[1],
                        "cells compared",
                        time.perf_counter() - start,
                        detail,
                    )
                )
    return checks


def judge(trial: Trial, stages: Mapping[str, IntArray]) -> tuple[bool, str]:
    """Compare the states that stages made with the definition, and the last's with what is known.

    Returns
    -------
    wrong, detail
        Whether anything is, and a line about it: the stage, generation and cell of a mismatch.
    """
    history = trial.history()
    names = trial.automaton.rule(trial.border).channel_names
    expected = np.stack([trial.codes(history[generation]) for generation in trial.compared])
    for stage, states in stages.items():
        first = compare(expected, states, names).first
        if first is not None:
            found = "no answer" if first.found is None else f"got {first.found}"
            return True, (
                f"{stage}, generation {trial.compared[first.step]}, cell (x {first.x}, "
                f"y {first.y}), channel {first.channel}: expected {first.expected}, {found}"
            )
    worlds = {0: history[0]} | trial.worlds(states)
    if not any(world and world != trial.start for world in worlds.values()):
        return True, f"nothing was born in {len(worlds)} generations"
    if not trial.holds(worlds, trial.shape):
        return True, f"not as known: {trial.fact}"
    last = max(worlds)
    return False, f"population {len(worlds[last])} at generation {last}; {trial.fact}"
