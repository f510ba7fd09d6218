"""The order of jobs, and which sums are computed side by side."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from .jobs import Job, Plan, Total

Node = TypeVar("Node")

#: Sums that may be computed side by side: of which `Linear`, and how many jobs lie before them.
#: None waits for another one, for they lie equally deep.
Layer = tuple[int, int]

#: A word, or a pass of a layer.
_Group = int | tuple[Layer, int]


class Schedule:
    """Jobs in their order.

    Attributes
    ----------
    layers
        Sums of each layer, by their words, in the order in which they are asked for.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        depths: dict[int, int] = {}
        for word, job in plan.jobs.items():
            depths[word] = 1 + max((depths.get(read, 0) for read in plan.reads(job)), default=0)
        self._layer: dict[int, Layer] = {
            word: (job.expression.linear, depths[word])
            for word, job in plan.jobs.items()
            if isinstance(job, Total) and job.expression.linear is not None
        }
        self._asked = [plan.held[word].base for word in plan.outputs if isinstance(word, int)]
        self.layers: dict[Layer, list[int]] = {}
        for word in in_order(self._asked, self._before):
            if word in self._layer:
                self.layers.setdefault(self._layer[word], []).append(word)

    def layer(self, word: int) -> Layer | None:
        """Return the layer of a word's sum, if it is one of a layer."""
        return self._layer.get(word)

    def moves(self, layer: Layer) -> bool:
        """Whether sums of a layer are made of neighbours' words."""
        jobs = [self.plan.jobs[word] for word in self.layers[layer]]
        return any(
            term.border for job in jobs if isinstance(job, Total) for term in job.expression.terms
        )

    def _before(self, word: int) -> list[int]:
        job = self.plan.jobs.get(word)
        return sorted(self.plan.reads(job)) if job else []

    def groups(self, passes: Mapping[Layer, int]) -> list[list[Job]]:
        """Return jobs in an order in which they can be done, those of a pass together.

        Parameters
        ----------
        passes
            Into how many parts each layer is cut; one by default.
        """
        members: dict[_Group, list[int]] = {}
        group_of: dict[int, _Group] = {}
        for layer, words in self.layers.items():
            count = passes.get(layer, 1)
            for index, word in enumerate(words):
                group_of[word] = layer, index * count // len(words)
                members.setdefault(group_of[word], []).append(word)

        def of(word: int) -> _Group:
            return group_of.get(word, word)

        def words_of(group: _Group) -> list[int]:
            return [group] if isinstance(group, int) else members[group]

        def before(group: _Group) -> Iterable[_Group]:
            reads = [read for word in words_of(group) for read in self._before(word)]
            return dict.fromkeys(map(of, reads))

        jobs = self.plan.jobs
        found = []
        for group in in_order(map(of, self._asked), before):
            found.append([jobs[word] for word in words_of(group) if word in jobs])
        return [group for group in found if group]


def in_order(asked: Iterable[Node], before: Callable[[Node], Iterable[Node]]) -> list[Node]:
    """Return nodes, each after all that come before it, as late as it is asked for."""
    found: dict[Node, None] = {}
    open_nodes: list[tuple[Node, list[Node]]] = []
    for start in asked:
        open_nodes.append((start, list(before(start))[::-1]))
        while open_nodes:
            node, waiting = open_nodes[-1]
            if node in found:
                open_nodes.pop()
            elif waiting:
                following = waiting.pop()
                if following not in found:
                    open_nodes.append((following, list(before(following))[::-1]))
            else:
                found[node] = None
                open_nodes.pop()
    return list(found)
