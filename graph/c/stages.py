"""The stages of a step: what cells see of their neighbours comes from a stage before."""

from dataclasses import dataclass

from ..operations import AROUND, Channel, Constant, Input, Linear, Random, Window
from ..step import StepGraph


@dataclass(frozen=True)
class Plan:
    """In which stage each word is computed: as late as those allow that read it.

    Attributes
    ----------
    stages
        How many there are.
    stage
        Of each word that the next state depends on.
    stored
        Words that a later stage reads, in their order.
    """

    stages: int
    stage: dict[int, int]
    stored: list[int]


def plan(graph: StepGraph, copied: bool) -> Plan:
    """Cut a graph into stages.

    Parameters
    ----------
    copied
        Whether neighbours see copies of channels and inputs, made in a stage before, or them.
    """
    live = set[int]()
    wanted = list(graph.outputs)
    while wanted:
        if (word := wanted.pop()) not in live:
            live.add(word)
            wanted += [one for one, _ in reads(graph, word)]

    def in_place(word: int) -> bool:
        return not copied and isinstance(graph.made_by(word)[0], Channel | Input)

    earliest: dict[int, int] = {}
    for word in sorted(live):
        earliest[word] = max(
            (
                0 if around and in_place(one) else earliest[one] + around
                for one, around in reads(graph, word)
            ),
            default=0,
        )
    count = 1 + max(earliest.values(), default=0)
    latest = dict.fromkeys(live, count - 1)
    stored = set[int]()
    for index in reversed(range(len(graph.operations))):
        words = [word for word in graph.words(index) if word in live]
        if isinstance(graph.operations[index], Linear):  # all at once
            latest.update(dict.fromkeys(words, min((latest[word] for word in words), default=0)))
        for word in words:
            for one, around in reads(graph, word):
                if not (around and in_place(one)):
                    latest[one] = min(latest[one], latest[word] - around)
                    if around:
                        stored.add(one)
    for word in live:
        for one, around in reads(graph, word):
            if not around and latest[word] > latest[one] and not is_given(graph, one):
                stored.add(one)
    return Plan(count, latest, sorted(stored))


def reads(graph: StepGraph, word: int) -> list[tuple[int, bool]]:
    """Return what is needed for a word: other words, and whether of all cells around."""
    operation, lane = graph.made_by(word)
    match operation:
        case Linear(a=words):
            return [(one, operation.weight.shape[2] == AROUND) for one in words]
        case Window(a=words):
            return [(words[lane], True)]
    return [(words[lane], False) for words in operation.arguments]


def is_given(graph: StepGraph, word: int) -> bool:
    """Whether a word is at hand in every stage."""
    return isinstance(graph.made_by(word)[0], Channel | Input | Random | Constant)
