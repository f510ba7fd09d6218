import re
import shutil
from typing import Any

import numpy as np
import pytest

from scotopia.graph import golden
from scotopia.graph.build import Builder
from scotopia.graph.c.header import Extra, c_header
from scotopia.graph.errors import InputError
from scotopia.graph.operations import AROUND, HERE, OPERATIONS
from scotopia.graph.qformat import Overflow, QFormat, Rounding
from scotopia.graph.step import StepGraph
from scotopia.graph.surroundings import Initial
from scotopia.sim.random_graphs import any_graph

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

SEEDS = range(28)
SIZES = [(4, 5), (1, 1), (1, 3), (5, 1), (2, 2)]

UNIT = QFormat(1, 7)


def assert_c_is_golden(program: Any, number: int, moments: list[Any]) -> None:
    graph = program.graphs[number]
    for moment in moments:
        found = program.steps(number, moment.state, [moment.inputs], moment.noise)
        expected = golden.step(graph, moment.state, moment.inputs, moment.noise)
        np.testing.assert_array_equal(found[0], expected)


@pytest.fixture(scope="module")
def program(c_program: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    graphs = [any_graph(seed) for seed in SEEDS]
    headers = [(graph, c_header(graph, f"rule_{i}")) for i, graph in enumerate(graphs)]
    return c_program(headers, tmp_path_factory.mktemp("c")).compiled()


@needs_compiler
@pytest.mark.parametrize("number", SEEDS)
def test_c_is_the_golden_model(number: int, program: Any, moment: Any) -> None:
    moments = [moment(program.graphs[number], seed, *size) for seed, size in enumerate(SIZES)]
    assert_c_is_golden(program, number, moments)


def test_every_kind_of_operation_was_compared() -> None:
    kinds = {type(operation) for seed in SEEDS for operation in any_graph(seed).operations}
    assert kinds == set(OPERATIONS)


# Numbers that need more than 32 bits


def wide_graphs() -> list[StepGraph]:
    """Graphs whose words are as wide as they can be."""
    graphs = []
    for rounding in Rounding:
        for overflow in Overflow:
            build = Builder()
            formats = {
                "a": QFormat(1, 29),
                "b": QFormat(30, -1),
                "c": QFormat(0, 31, signed=False),
                "d": QFormat(32, 0, signed=False),
            }
            a, b, c, d = build.channels(formats)
            given = build.inputs({"wide": QFormat(2, 30), "bit": QFormat(1, 0, signed=False)})
            one, other = QFormat(1, 29), QFormat(20, 0)
            most = build.window(c - d, largest=False, border="zero")
            weight = np.full((2, 3, AROUND), 2.0**-3) * [[[1], [-2], [0.5]], [[-3], [1], [1]]]
            total = build.linear(build.concatenate([a, c, given[1]]), weight, [2.0, -1])
            product = (total[1].fit(one, rounding, overflow) * given[0]).fit(one, rounding)
            whole = build.linear(build.concatenate([b, d]), [[[3], [-1]]], [0.0])
            after = {
                "a": build.where(given[1], product, total[0].fit(one, rounding, overflow)),
                "b": build.where(whole < b, b, whole).fit(formats["b"], rounding, overflow),
                "c": most.fit(formats["c"], rounding, overflow),
                "d": (d - b.fit(other, rounding, overflow)).fit(formats["d"], rounding, overflow),
            }
            graphs.append(build.graph(after))
    return graphs


@needs_compiler
def test_numbers_of_more_than_32_bits_are_exact(c_program: Any, tmp_path: Any, moment: Any) -> None:
    graphs = wide_graphs()
    headers = [(graph, c_header(graph, f"rule_{i}")) for i, graph in enumerate(graphs)]
    program = c_program(headers, tmp_path).compiled()
    for number, graph in enumerate(graphs):
        assert_c_is_golden(program, number, [moment(graph, seed) for seed in range(3)])


@needs_compiler
def test_ends_of_32_bits_are_rounded(c_program: Any, tmp_path: Any) -> None:
    build = Builder()
    x = build.channels({f"x{i}": QFormat(32, 0) for i in range(2 * len(Rounding))})
    after = {}
    for i, rounding in enumerate(Rounding):
        for j, shift in enumerate((1, 30)):
            fitted = x[2 * i + j].fit(QFormat(32, -shift), rounding, Overflow.WRAP)
            after[f"x{2 * i + j}"] = (fitted - 1).fit(QFormat(32, 0), rounding, Overflow.WRAP)
    graph = build.graph(after)
    program = c_program([(graph, c_header(graph, "rule_0"))], tmp_path).compiled()
    codes = np.array([-(1 << 31), 1 - (1 << 31), -1 << 30, -1, 0, 1 << 29, 1 << 30, (1 << 31) - 1])
    state = np.broadcast_to(codes, (2 * len(Rounding), 1, len(codes)))
    found = program.steps(0, state, [{}])
    np.testing.assert_array_equal(found[0], golden.step(graph, state, {}))


def test_what_needs_more_than_64_bits_is_refused() -> None:
    build = Builder()
    x = build.channels({"x": QFormat(1, 31)})
    far = build.name((x * x).fit(QFormat(3, -1)), ["far"])
    with pytest.raises(InputError) as caught:
        c_header(build.graph({"x": far.fit(QFormat(1, 31))}))
    assert str(caught.value) == "far needs 65 bits on its way, C has 64: quantize with fewer"


@needs_compiler
def test_what_is_far_below_a_unit_rounds_away(c_program: Any, tmp_path: Any, moment: Any) -> None:
    headers = []
    for i, rounding in enumerate(Rounding):
        build = Builder()
        x = build.channels({"x": QFormat(-40, 50)})
        far = (x * 2.0**-40).fit(QFormat(10, 0), rounding)
        graph = build.graph({"x": (far * 2.0**-50).fit(QFormat(-40, 50))})
        headers.append((graph, c_header(graph, f"rule_{i}")))
    program = c_program(headers, tmp_path).compiled()
    for number, (graph, _) in enumerate(headers):
        assert_c_is_golden(program, number, [moment(graph, 0)])


@needs_compiler
@pytest.mark.parametrize("size", [(5, 6), (4, 1), (1, 2), (2, 9)])
def test_first_state_is_written(size: tuple[int, int], c_program: Any, tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    build = Builder()
    x = build.channels({"x": UNIT, "y": QFormat(4, 0), "z": QFormat(1, 0)})
    graph = build.graph({"x": x[0], "y": x[1], "z": x[2]})
    initials = [
        Initial(np.array([0.3, 0, 0]), np.zeros((3, 0, 0)), np.zeros(3)),
        Initial(np.array([0, -3.2, 0]), rng.uniform(-1, 1, (3, 3, 4)), np.zeros(3)),
        Initial.cell(np.array([0.5, 1, 0])),
    ]
    headers = [(graph, c_header(graph, f"rule_{i}", 1, one)) for i, one in enumerate(initials)]
    program = c_program(headers, tmp_path)
    for i in range(len(initials)):
        program.add(
            1000 + i,
            f"{{ int32_t *state = (int32_t *)malloc(12 * cells);"
            f"rule_{i}_start(state, height, width); fwrite(state, 12, cells, stdout);"
            "free(state); }",
        )
    program.compiled()
    for i, initial in enumerate(initials):
        expected = [
            f.quantize(v) for f, v in zip(graph.channel_formats, initial.state(*size), strict=True)
        ]
        found = np.frombuffer(program.run(1000 + i, b"", 0, *size, 0), np.int32)
        np.testing.assert_array_equal(found.reshape(3, *size), expected)


# The text


def small_graph(channel: str = "x", given: str = "seen") -> StepGraph:
    build = Builder()
    x = build.channels({channel: UNIT})
    kernel = build.linear(x, np.arange(9.0)[None, None] / 8, [0.5], "wrap")
    total = build.name(kernel.fit(UNIT), ["what it finds"]) + build.inputs({given: UNIT})
    return build.graph({channel: (total + build.random(3)).fit(UNIT, Rounding.RND_CONV)})


def test_a_step_reads_like_its_graph() -> None:
    text = c_header(small_graph(), "eye")
    assert (
        "            const int32_t what_it_finds = eye_clamp(eye_rnd(sum_1[0], 3), -128, 127);\n"
        "            const int32_t seen_here = seen_2[cell];\n"
    ) in text
    assert (
        " *   channel  name  codes        value\n *   0        x     -128 to 127  code / " in text
    )
    assert "        { 0, 1, 2, 3, 4, 5, 6, 7, 8 }, /* x */\n" in text


def test_what_a_rule_adds_is_there() -> None:
    extra = Extra({"x": "light"}, ["@@_KINDS times {", "    STEP", "}"], {"KINDS": "7"}, "/* @ */")
    text = c_header(small_graph(), "eye", 5, extra=extra)
    for part in (
        "/* eye */\n",
        "code / 128  light\n",
        " *   EYE_KINDS times {\n *       eye_noise(rows, noise, height, width);\n",
        "#define EYE_KINDS 7\n",
        "#define EYE_SEED UINT32_C(5)",
    ):
        assert part in text


@needs_compiler
@pytest.mark.parametrize("name", ["int", "state", "x y", "*/", "é", "2", "", "a" * 99, "\\"])
def test_any_name_becomes_an_identifier(
    name: str, c_program: Any, tmp_path: Any, moment: Any
) -> None:
    graph = small_graph(name, f"given {name}")
    program = c_program([(graph, c_header(graph, "rule_0"))], tmp_path).compiled()
    assert_c_is_golden(program, 0, [moment(graph, 0)])


def test_header_is_easy_on_the_eye() -> None:
    for seed in SEEDS:
        text = c_header(any_graph(seed), "rule")
        assert "{{" not in text.replace("{ {", "")
        assert [line for line in text.splitlines() if len(line) > 100] == []
        assert not re.search(r"[ \t]$|\n\n\n|\t", text, re.MULTILINE)


def test_nothing_is_declared_that_is_not_used() -> None:
    build = Builder()
    x = build.channels({"x": UNIT})
    build.linear(x, np.ones((1, 1, HERE)), [0.0])
    text = c_header(build.graph({"x": x}))
    assert "sum_1[" not in text and "_rnd(" not in text
