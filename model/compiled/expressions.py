"""Expressions of single numbers of a cell, and the C++ loops over a row that compute them.

Equal expressions are one object. A loop is written once for all assignments that differ in nothing
but in which planes they read and write: eight channels, or 128 hidden neurons, are a table.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from scotopia.graph.qformat import Overflow, QFormat, Rounding


@dataclass(frozen=True, eq=False)
class Node:
    """A number, or a truth, of each cell.

    Attributes
    ----------
    wide
        Whether it is computed, or compared, as a `Real`; else as a float. What is written into the
        code or is given when it runs is both.
    kind
        "number", "given" (a number that is known when the code runs), "load" (from a plane), or
        how it is computed.
    arguments
        What it is computed of.
    data
        What else defines it.
    size
        Of how many operations it is made.
    """

    kind: str
    arguments: tuple["Node", ...]
    data: tuple[object, ...]
    size: int
    wide: bool


@dataclass(frozen=True)
class Plane:
    """A plane of numbers: the array that holds it, and its number in there."""

    array: str
    number: int

    def at(self, row: str = "y") -> str:
        """Write where one of its rows begins."""
        return row_at(self.array, str(self.number), row)


@dataclass(frozen=True)
class Assignment:
    """What is written to a plane, or added to it, at every cell."""

    target: Plane
    value: Node
    adds: bool = False


#: How each kind is written; `{0}` is its first argument.
_TEXT = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "neg": "(-{0})",
    "min": "smaller({0}, {1})",
    "max": "larger({0}, {1})",
    "where": "({0} ? {1} : {2})",
    "bit": "bit({0})",
    "lt": "({0} < {1})",
    "eq": "({0} == {1})",
    "nonzero": "({0} != 0)",
    "and": "({0} & {1})",
    "narrow": "{0}",
}
_TRUTHS = {"lt", "eq", "nonzero", "and"}
_LEAVES = {"number", "given", "load"}

#: Arrays of gradients, which are floats.
GRADIENTS = {"dnext", "dprevious", "dplane", "dstrip", "extended", "dnumber"}

#: Operations that are rather done twice than shared by two loops.
CHEAP = 3


class Expressions:
    """Makes nodes, each once.

    Parameters
    ----------
    wide_store
        Whether what is kept has to be read as a `Real`.
    """

    def __init__(self, wide_store: bool = False) -> None:
        self._made: dict[object, Node] = {}
        self._wide_store = wide_store

    def make(
        self, kind: str, *arguments: Node, data: tuple[object, ...] = (), wide: bool = False
    ) -> Node:
        """Return the node of a kind; it is wide, too, if it is computed of what is."""
        wide |= any(one.wide for one in arguments if one.kind not in _TRUTHS)
        key = kind, tuple(map(id, arguments)), data, wide
        if key not in self._made:
            size = 0 if kind in _LEAVES else 1 + sum(one.size for one in arguments)
            self._made[key] = Node(kind, arguments, data, size, wide and kind != "narrow")
        return self._made[key]

    def number(self, value: float) -> Node:
        """Return a number that is written into the code."""
        return self.make("number", data=(float(value),))

    def given(self, index: int) -> Node:
        """Return a number of those that are given when the code runs."""
        return self.make("given", data=(index,))

    def load(self, plane: Plane, dy: int = 0, dx: int = 0) -> Node:
        """Return what a plane holds of this cell, or of one beside it."""
        wide = self._wide_store and plane.array not in GRADIENTS
        return self.make("load", data=(plane, dy, dx), wide=wide)

    def narrow(self, a: Node) -> Node:
        """Return a number as a float, which holds it or comes as close as a gradient needs."""
        return self.make("narrow", a) if a.wide else a

    def add(self, a: Node | None, b: Node) -> Node:
        """Return a sum; None is nothing."""
        return b if a is None else self.make("add", a, b)

    def multiply(self, a: Node, b: Node, wide: bool = False) -> Node:
        """Return a product."""
        for one, other in ((a, b), (b, a)):
            if one.kind == "number" and one.data[0] == 1:
                return other
            if one.kind == "number" and one.data[0] == -1:
                return self.make("neg", other)
        return self.make("mul", a, b, wide=wide)

    def truth(self, bit: Node) -> Node:
        """Return whether a bit is not 0."""
        return bit.arguments[0] if bit.kind == "bit" else self.make("nonzero", bit)

    def where(self, condition: Node, a: Node, b: Node) -> Node:
        """Return `a` where something holds, else `b`."""
        return a if a is b else self.make("where", condition, a, b)

    def fit(
        self, a: Node, format: QFormat, rounding: Rounding, overflow: Overflow, wide: bool
    ) -> Node:
        """Return a number brought to a format."""
        return self.make("fit", a, data=(format, rounding, overflow), wide=wide)


def loads(assignments: Iterable[Assignment]) -> Iterator[Plane]:
    """Yield the planes that are read."""
    for node in _all_nodes([one.value for one in assignments]):
        if node.kind == "load":
            plane = node.data[0]
            assert isinstance(plane, Plane)
            yield plane


def _all_nodes(roots: Sequence[Node]) -> list[Node]:
    """All that roots are made of, each after what it is made of."""
    found: dict[int, Node] = {}

    def visit(root: Node) -> None:
        stack = [(root, iter(root.arguments))]
        while stack:
            node, rest = stack[-1]
            for argument in rest:
                if id(argument) not in found:
                    stack.append((argument, iter(argument.arguments)))
                    break
            else:
                stack.pop()
                found[id(node)] = node

    for root in roots:
        if id(root) not in found:
            visit(root)
    return list(found.values())


def row_at(array: str, number: str, row: str) -> str:
    """Write where a row of a plane begins."""
    return f"{array}.at({number}, {row})"


def loops(assignments: Sequence[Assignment], begin: str = "0", end: str = "padded") -> list[str]:
    """Write the loops over the cells of row `y` that do all assignments.

    No assignment may read what another writes.

    Parameters
    ----------
    begin, end
        First cell, and the one behind the last.
    """
    classes: dict[object, list[list[int | Plane]]] = defaultdict(list)
    members: dict[object, list[Assignment]] = {}
    for component in _components(assignments):
        shape, places = _shape(component)
        classes[shape].append(places)
        members.setdefault(shape, component)
    lines: list[str] = []
    for shape, tables in classes.items():
        planes = [one for one in tables[0] if isinstance(one, Plane)]
        # A strip's rows have nothing between them.
        dense = any(plane.array in ("strip", "dstrip") for plane in planes)
        lines += _loop(members[shape], tables, begin, "width" if dense else end)
    return lines


def _components(assignments: Sequence[Assignment]) -> list[list[Assignment]]:
    """Assignments together that share more than what is cheap, or a plane that they write."""
    parent = list(range(len(assignments)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    user: dict[object, int] = {}
    for i, assignment in enumerate(assignments):
        shared: list[object] = [assignment.target]
        shared += [id(n) for n in _all_nodes([assignment.value]) if n.size > CHEAP]
        for one in shared:
            parent[root(i)] = root(user.setdefault(one, i))
    groups: dict[int, list[Assignment]] = defaultdict(list)
    for i, assignment in enumerate(assignments):
        groups[root(i)].append(assignment)
    return list(groups.values())


def _shape(component: list[Assignment]) -> tuple[object, list[int | Plane]]:
    """What a loop looks like without its planes and given numbers, and these, in their order."""
    nodes = _all_nodes([one.value for one in component])
    number = {id(node): i for i, node in enumerate(nodes)}
    places: list[int | Plane] = []
    planes: dict[Plane, int] = {}
    shape: list[object] = []

    def place(plane: Plane) -> int:
        if plane not in planes:
            planes[plane] = len(places)
            places.append(plane)
        return planes[plane]

    for node in nodes:
        data: tuple[object, ...] = node.data
        if node.kind == "load":
            plane = node.data[0]
            assert isinstance(plane, Plane)
            data = (plane.array, place(plane), *node.data[1:])
        elif node.kind == "given":
            index = node.data[0]
            assert isinstance(index, int)
            data = (len(places),)
            places.append(index)
        elif node.kind == "number":
            data = (float.hex(node.data[0]),)  # type: ignore[arg-type]
        shape.append((node.kind, data, node.wide, tuple(number[id(a)] for a in node.arguments)))
    for one in component:
        value = number[id(one.value)]
        shape.append((one.target.array, place(one.target), one.adds, value))
    return tuple(shape), places


def _loop(
    component: list[Assignment],
    tables: list[list[int | Plane]],
    begin: str,
    end: str,
) -> list[str]:
    numbers = [[p.number if isinstance(p, Plane) else p for p in places] for places in tables]
    single = len(tables) == 1
    head: list[str] = ["{"]
    if not single:
        rows = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in numbers)
        head.append(f"static const int t[{len(tables)}][{len(numbers[0])}] = {{{rows}}};")
        head.append("for (const auto& i : t) {")
    place = {one: k for k, one in reversed(list(enumerate(tables[0]))) if isinstance(one, Plane)}

    def index(k: int) -> str:
        return str(numbers[0][k]) if single else f"i[{k}]"

    pointers: dict[tuple[Plane, int], str] = {}

    def pointer(plane: Plane, dy: int) -> str:
        if (plane, dy) not in pointers:
            name = pointers[plane, dy] = f"p{len(pointers)}"
            row = "y" if dy == 0 else f"y + {dy}" if dy > 0 else f"y - {-dy}"
            head.append(f"auto* {name} = {row_at(plane.array, index(place[plane]), row)};")
        return pointers[plane, dy]

    body: list[str] = []
    names: dict[int, str] = {}

    def argument(node: Node, kind: str) -> str:
        """Write what a node of a kind of numbers is computed of."""
        if node.kind == "number":
            return literal(node.data[0], kind)  # type: ignore[arg-type]
        name = names[id(node)]
        if node.kind in _TRUTHS or (node.kind != "given" and kind == _type(node)):
            return name
        return f"{kind}({name})"

    given = iter([k for k, one in enumerate(tables[0]) if not isinstance(one, Plane)])
    for node in _all_nodes([one.value for one in component]):
        name = f"v{len(names)}"
        if node.kind == "number":
            continue
        if node.kind == "given":
            head.append(f"const Real {name} = given[{index(next(given))}];")
        elif node.kind == "load":
            plane, dy, dx = node.data
            assert isinstance(plane, Plane) and isinstance(dy, int)
            where = f"x + {dx}" if dx else "x"
            body.append(f"const {_type(node)} {name} = {pointer(plane, dy)}[{where}];")
        else:
            kind = "bool" if node.kind in _TRUTHS else _type(node)
            arguments = [argument(a, _type(node)) for a in node.arguments]
            text = _fitted(arguments[0], node) if node.kind == "fit" else _TEXT[node.kind]
            body.append(f"const {kind} {name} = {text.format(*arguments)};")
        names[id(node)] = name
    for one in component:
        kind = "float" if one.target.array in GRADIENTS else "Store"
        to, value = pointer(one.target, 0), argument(one.value, kind)
        body.append(f"{to}[x] {'+=' if one.adds else '='} {value};")
    lines = [*head, f"EACH({begin}, {end}) {{", *body, "}", "}"]
    return lines if single else [*lines, "}"]


def _type(node: Node) -> str:
    return "Real" if node.wide else "float"


def literal(value: float, kind: str) -> str:
    """Write a number of some type."""
    return f"{kind}({float(value).hex()})"


def _fitted(argument: str, node: Node) -> str:
    format, rounding, overflow = node.data
    assert isinstance(format, QFormat) and isinstance(overflow, Overflow)
    numbers = {n: literal(value, _type(node)) for n, value in _grid(format, overflow).items()}
    return _fit_text(rounding, overflow).format(argument, **numbers)


def fitted_lanes(
    formats: Sequence[QFormat], rounding: Rounding, overflow: Overflow
) -> tuple[dict[str, list[float]], str]:
    """Return tables of numbers, and how with those of place `n` a number `v` is fitted."""
    grids = [_grid(format, overflow) for format in formats]
    tables = {name: [grid[name] for grid in grids] for name in grids[0]}
    return tables, _fit_text(rounding, overflow).format("v", **{n: f"{n}[n]" for n in tables})


def _fit_text(rounding: object, overflow: Overflow) -> str:
    code = f"to_{rounding}({{0}} * {{scale}})"
    if overflow is Overflow.WRAP:
        return f"wrapped({code}, {{low}}, {{span}}, {{per_span}}) * {{unit}}"
    return f"into({code}, {{low}}, {{high}}) * {{unit}}"


def _grid(format: QFormat, overflow: Overflow) -> dict[str, float]:
    low, high = ends(format, overflow)
    grid = {"scale": 2.0**format.frac_bits, "unit": 2.0**-format.frac_bits, "low": low}
    if overflow is Overflow.WRAP:
        return grid | {"span": 2.0**format.bits, "per_span": 2.0**-format.bits}
    return grid | {"high": high}


def ends(format: QFormat, overflow: Overflow) -> tuple[int, int]:
    """Lowest and highest code that a number is brought to."""
    symmetric = overflow is Overflow.SAT_SYM and format.signed
    return format.lowest + symmetric, format.highest
