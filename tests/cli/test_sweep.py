import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

pytest.importorskip("distributed", reason="pip install 'scotopia[sweep]'")
pytest.importorskip("matplotlib", reason="pip install 'scotopia[sweep]'")

from distributed import Client, LocalCluster
from safetensors.numpy import load_file

from scotopia.cli import main as cli
from scotopia.cli import sweep as sweeping
from scotopia.cli.outputs import SWEEP_FILES
from scotopia.graph.errors import InputError
from scotopia.hdl.estimate import estimate
from scotopia.model.config import RuleConfig
from scotopia.model.rule import Rule
from scotopia.quantize.integer_rule import IntegerRule
from scotopia.quantize.sweep import Task

Run = Callable[..., tuple[int, str, str]]
Arguments = tuple[object, ...]

SCRIPTS = Path(sys.executable).parent
QUICK = ("--size", 16, "--density", 0.1, "--drift-steps", 10)
SMALL = (*QUICK, "--weight-bits", "4,6", "--state-bits", 6, "--seeds", 0)
LARGE = (*QUICK, "--weight-bits", "3,4,5,6,8", "--state-bits", "6,8", "--seeds", "0,1")
LARGE_RESULTS = 2 + 20 + 40 + 1 + 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="module")
def rule(
    inputs: Path, small_config: Callable[..., RuleConfig], float_rule: Callable[..., Rule]
) -> Path:
    path = inputs / "small.safetensors"
    float_rule(3, small_config()).save(path)
    return path


@pytest.fixture(scope="module")
def small_clip(inputs: Path) -> Path:
    path = inputs / "noise.npy"
    np.save(path, np.random.default_rng(0).random((24, 16, 16), np.float32))
    return path


@pytest.fixture(scope="module")
def threads() -> Iterator[Client]:
    """A cluster within this process."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, rule: Path, small_clip: Path, threads: Client
) -> Path:
    """Folder of a sweep of `LARGE` that nothing has disturbed."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping, "connect", lambda scheduler, workers: nullcontext(threads))
        arguments = ("sweep", rule, "--clip", small_clip, *LARGE, "-o", out)
        patch.setattr(sys, "argv", ["scotopia", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
    assert not exit.value.code
    return out


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch, threads: Client) -> list[object]:
    """Connect to the cluster within this process, and note how often."""
    made: list[object] = []

    @contextmanager
    def connect(scheduler: str | None, workers: int | None) -> Iterator[Client]:
        made.append((scheduler, workers))
        yield threads

    monkeypatch.setattr(sweeping, "connect", connect)
    return made


def rows_of(path: Path) -> list[dict[str, str]]:
    """The table, but for the seconds that it took."""
    with path.open(newline="") as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


def results_in(folder: Path) -> list[str]:
    """Lines of the journal that are whole."""
    path = folder / "results.jsonl"
    return path.read_bytes().decode().split("\n")[:-1] if path.exists() else []


def identities(lines: list[str]) -> list[str]:
    return [json.dumps(json.loads(line)["what"], sort_keys=True) for line in lines]


def test_sweep_writes_table_page_drift_and_json(
    run: Run, rule: Path, small_clip: Path, tmp_path: Path, connections: list[object]
) -> None:
    out, target = tmp_path / "sweep", tmp_path / "sweep.json"
    arguments = (rule, "--clip", small_clip, *SMALL, "-o", out, "--json", target)
    status, text, _ = run("sweep", *arguments)
    assert status == 0
    assert connections == [(None, None)]
    rows = rows_of(out / "sweep.csv")
    order = [(row["weight_bits"], row["rounding"]) for row in rows]
    assert order == [("4", "RND"), ("4", "TRN"), ("6", "RND"), ("6", "TRN")]
    result = json.loads(target.read_text())
    assert [point["psnr"] for point in result["points"]] == [float(row["psnr"]) for row in rows]
    assert result["refused"] == {}
    page = (out / "index.html").read_text()
    for one in result["fronts"]["total_bits"]:
        name = f"{one['weight_bits']}-bit weights, {one['state_bits']}-bit state, {one['rounding']}"
        assert name in page
        assert f"small w{one['weight_bits']} s{one['state_bits']} {one['rounding']}" in text
        assert f"{one['psnr']:.2f}" in text
    with (out / "drift.csv").open(newline="") as file:
        drift = list(csv.DictReader(file))
    assert [row["step"] for row in drift[:5]] == ["2", "4", "6", "8", "10"]
    assert len(drift) == 4 * 5
    for row in drift:
        loss = float(row["float_psnr"]) - float(row["psnr"])
        assert float(row["loss"]) == pytest.approx(loss, abs=2e-4)


class Outside(HTMLParser):
    """Collects the addresses that a page refers to, and ids that it has twice."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "xlink:href"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_page_stands_alone(
    run: Run, rule: Path, small_clip: Path, tmp_path: Path, connections: list[object]
) -> None:
    out, odd = tmp_path / "sweep", tmp_path / "$_{$<b>.safetensors"
    odd.write_bytes(rule.read_bytes())
    assert run("sweep", rule, odd, "--clip", small_clip, *SMALL, "-o", out)[0] == 0
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 4
    assert "$<b>" not in page
    assert "prefers-color-scheme: light" in page
    found = Outside(page)
    beside = [address for address in found.addresses if not address.startswith(("#", "data:"))]
    assert beside
    assert all((out / unquote(address)).is_file() for address in beside)
    assert all(address[1:] in found.ids for address in found.addresses if address[0] == "#")
    assert not re.search(r"https?:|url\((?!#)|@import", page)
    assert "#0102" not in page  # a placeholder for one of the page's colours


def test_rules_on_the_front_are_those_of_quantize(
    run: Run, rule: Path, small_clip: Path, tmp_path: Path, connections: list[object]
) -> None:
    out, target = tmp_path / "sweep", tmp_path / "sweep.json"
    one = (
        "--weight-bits",
        6,
        "--update-bits",
        5,
        "--state-bits",
        7,
        "--rounding",
        "TRN",
        "--density",
        0.1,
    )
    status, _, _ = run(
        *("sweep", rule, "--clip", small_clip, "--seeds", 0, *QUICK, *one, "-o", out),
        *("--json", target),
    )
    assert status == 0
    expected = tmp_path / "expected.safetensors"
    assert run("quantize", rule, *one, "-o", expected)[0] == 0
    tensors = load_file(expected)
    for name, found in load_file(out / "rules" / "small-w6-u5-s7-TRN.safetensors").items():
        np.testing.assert_array_equal(found, tensors[name])
    (design,) = json.loads(target.read_text())["designs"]
    cost = estimate(IntegerRule.load(expected), 64, 64)
    assert design["cycles_per_step"] == cost.cycles_per_step is not None
    luts = cost.lut4_per_thousand_updates
    assert design["lut4_per_thousand_updates"] == pytest.approx(luts, abs=1e-4)
    assert design["signed_digits"] == cost.signed_digits
    assert design["state_bits_per_cell"] == cost.state_bits


def test_a_second_run_computes_nothing_and_writes_the_same(
    run: Run, rule: Path, small_clip: Path, tmp_path: Path, connections: list[object]
) -> None:
    arguments = (rule, "--clip", small_clip, *SMALL, "-o", tmp_path / "sweep")
    assert run("sweep", *arguments)[0] == 0
    before = {name: (tmp_path / "sweep" / name).read_bytes() for name in SWEEP_FILES}
    assert run("sweep", *arguments)[0] == 0
    assert len(connections) == 1
    assert {name: (tmp_path / "sweep" / name).read_bytes() for name in SWEEP_FILES} == before


def test_another_grid_reuses_what_fits(
    run: Run, rule: Path, small_clip: Path, tmp_path: Path, connections: list[object]
) -> None:
    out = tmp_path / "sweep"
    clip = ("--clip", small_clip, "-o", out)
    assert run("sweep", rule, *clip, *SMALL)[0] == 0
    before = results_in(out)
    changed = (*QUICK, "--weight-bits", "6,7", "--state-bits", 6, "--seeds", 0)
    assert run("sweep", rule, *clip, *changed)[0] == 0
    after = results_in(out)
    assert after[: len(before)] == before
    # For each rounding of 7-bit weights a rule, a score and a drift run.
    assert len(after) == len(before) + 2 * 3
    assert {row["weight_bits"] for row in rows_of(out / "sweep.csv")} == {"6", "7"}


def test_refused_points_are_rows_and_all_refused_is_status_1(
    run: Run, rule: Path, small_clip: Path, tmp_path: Path, connections: list[object]
) -> None:
    options = (*QUICK, "--weight-bits", 16, "--state-bits", 16, "--seeds", 0)
    status, text, _ = run("sweep", rule, "--clip", small_clip, *options, "-o", tmp_path / "sweep")
    assert status == 1
    assert "2 points refused: layer perceive: an accumulator can reach" in text
    rows = rows_of(tmp_path / "sweep" / "sweep.csv")
    assert [row["psnr"] for row in rows] == ["", ""]
    assert all("quantize with fewer bits" in row["reason"] for row in rows)
    assert "quantize with fewer bits" in (tmp_path / "sweep" / "index.html").read_text()


def test_frames_cuts_the_clip(
    run: Run, rule: Path, small_clip: Path, tmp_path: Path, connections: list[object]
) -> None:
    out = tmp_path / "sweep"
    options = (*QUICK, "--weight-bits", 6, "--state-bits", 6, "--seeds", 0, "--frames", 22)
    assert run("sweep", rule, "--clip", small_clip, *options, "-o", out)[0] == 0
    assert {row["frames"] for row in rows_of(out / "sweep.csv")} == {"22"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--weight-bits", "4,17"),
            "weight bits 17 are outside 2 to 16: choose 8, for instance",
        ),
        (("--state-bits", "1"), "state bits 1 are outside 2 to 16: choose 8, for instance"),
        (
            ("--weight-bits", "4,x"),
            "--weight-bits '4,x' are not whole numbers: separate them by commas, as in 4,6,8",
        ),
        (("--seeds", "-1"), "--seeds -1 is negative: give 0 or more"),
        (
            ("--rounding", "RND,UP"),
            "rounding 'UP' is unknown: choose one of TRN, TRN_ZERO, RND, RND_ZERO, RND_INF, "
            "RND_MIN_INF, RND_CONV",
        ),
        (("--density", "0"), "density 0 is not above 0 and up to 1: give 0.01 for 1 %"),
        (("--frames", "20"), "--frames 20 are too few, the first 20 are warm-up: give 21 or more"),
        (("--workers", "0"), "workers 0 are fewer than 1: give 1 or more"),
        (
            ("--workers", "2", "--scheduler", "tcp://localhost:1"),
            "the workers of tcp://localhost:1 are its own: leave out --workers 2",
        ),
    ],
)
def test_a_bad_option_is_one_line_and_writes_nothing(
    run: Run,
    rule: Path,
    small_clip: Path,
    tmp_path: Path,
    connections: list[object],
    options: tuple[str, ...],
    sentence: str,
) -> None:
    out = tmp_path / "sweep"
    status, _, err = run("sweep", rule, "--clip", small_clip, *SMALL, *options, "-o", out)
    assert (status, err) == (2, f"scotopia: {sentence}\n")
    assert connections == []
    assert not out.exists()


def test_bad_rules_and_clips_are_one_line(
    run: Run, rule: Path, small_clip: Path, tmp_path: Path, connections: list[object]
) -> None:
    out = tmp_path / "sweep"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(rule.read_bytes()[:100])
    for arguments, sentence in (
        ((rule,), "no clip is named: give --clip davis_road, or a file of your own"),
        ((broken, "--clip", small_clip), f"rule {broken} cannot be read"),
        (("retina-int", "--clip", small_clip), "is a Scotopia integer rule"),
        ((rule, rule, "--clip", small_clip), "two rules are called small: rename one"),
        ((rule, "--clip", tmp_path / "no.npy"), f"clip {tmp_path / 'no.npy'} does not exist"),
    ):
        status, _, err = run("sweep", *arguments, *SMALL, "-o", out)
        assert (status, err.count("\n")) == (2, 1)
        assert sentence in err
    assert connections == []
    assert not out.exists()


def test_a_file_in_the_folders_place_is_one_line(
    run: Run, rule: Path, small_clip: Path, connections: list[object]
) -> None:
    status, _, err = run("sweep", rule, "--clip", small_clip, *SMALL, "-o", rule)
    assert (status, err) == (2, f"scotopia: {rule}: Not a directory: choose a folder\n")


@pytest.mark.parametrize("package", ["distributed", "matplotlib"])
def test_a_missing_package_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = run("sweep", "retina", "--clip", "davis_road", "-o", tmp_path / "sweep")
    assert (status, err) == (
        2,
        f"scotopia: package {package} is missing, which only a sweep needs: "
        "pip install 'scotopia[sweep]'\n",
    )


def task_of(number: int) -> Task:
    return Task({"number": number}, int, ())


def test_journal_finds_its_results_again_and_drops_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    with sweeping.Journal(path) as journal:
        journal.add(task_of(1), {"psnr": 1.5})
        journal.add(task_of(2), {"psnr": 2.5})
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert sweeping.read_results(path) == {task_of(1).key: {"psnr": 1.5}}
    with sweeping.Journal(path) as journal:
        assert journal.results == {task_of(1).key: {"psnr": 1.5}}
        journal.add(task_of(2), {"psnr": 2.5})
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["{", "[]", "1", '{"what": {}}', '{"what": {}, "result": 1}'])
def test_journal_names_a_line_that_is_no_result(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"what":{},"result":{}}\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        sweeping.Journal(path)
    assert str(caught.value) == (
        f"{path} has no result in line 2: remove that line, and the sweep computes it again"
    )


def test_journal_belongs_to_one_sweep_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with sweeping.Journal(path), pytest.raises(InputError) as caught:
        sweeping.Journal(path)
    assert str(caught.value) == (
        f"{path} belongs to a sweep that is running: wait for it, or choose another -o"
    )


# Sweeps in processes of their own


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are to end with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def start(processes: list[subprocess.Popen[str]], *command: object) -> subprocess.Popen[str]:
    """Start a command of the virtual environment, in a session of its own."""
    program, *arguments = map(str, command)
    process = subprocess.Popen(
        [SCRIPTS / program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PATH": ""},  # no compiler, which takes seconds for each shape of rule
    )
    processes.append(process)
    return process


def wait_until(condition: Callable[[], Any], *alive: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        for process in alive:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def living(session: int) -> list[str]:
    """States of the processes of a session that have not ended."""
    states = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, number = file.read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z":
                states.append(state)
    return states


def test_a_killed_sweep_goes_on_with_nothing_lost_or_doubled(
    run: Run,
    rule: Path,
    small_clip: Path,
    whole: Path,
    tmp_path: Path,
    connections: list[object],
    processes: list[subprocess.Popen[str]],
) -> None:
    killed = tmp_path / "killed"
    arguments: Arguments = ("sweep", rule, "--clip", small_clip, *LARGE)
    process = start(processes, "scotopia", *arguments, "--workers", 1, "-o", killed)
    wait_until(lambda: len(results_in(killed)) > 10, process)
    process.kill()
    process.wait()
    before = results_in(killed)
    assert 10 < len(before) < LARGE_RESULTS
    assert not (killed / "sweep.csv").exists()

    assert run(*arguments, "-o", killed)[0] == 0
    after = results_in(killed)
    assert after[: len(before)] == before
    assert len(after) == len(set(identities(after))) == LARGE_RESULTS
    assert sorted(identities(after)) == sorted(identities(results_in(whole)))
    assert rows_of(killed / "sweep.csv") == rows_of(whole / "sweep.csv")
    assert (killed / "drift.csv").read_bytes() == (whole / "drift.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_leaves_a_table_and_says_how_to_go_on(
    rule: Path,
    small_clip: Path,
    tmp_path: Path,
    processes: list[subprocess.Popen[str]],
    number: signal.Signals,
) -> None:
    out = tmp_path / "sweep"
    arguments = (rule, "--clip", small_clip, *LARGE, "--workers", 1, "-o", out)
    process = start(processes, "scotopia", "sweep", *arguments)
    wait_until(lambda: len(results_in(out)) > 30, process)
    if number == signal.SIGTERM:
        process.send_signal(number)  # as `timeout` does, besides
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal does
    text, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    rows = rows_of(out / "sweep.csv")
    assert f"stopped after {len(rows)} of 40 points: the same command goes on from {out}" in text
    assert 30 < len(results_in(out)) < LARGE_RESULTS
    assert not (out / "index.html").exists()
    wait_until(lambda: not living(process.pid))


@pytest.fixture
def scheduler(processes: list[subprocess.Popen[str]], tmp_path: Path) -> str:
    """Address of a Dask scheduler on the loopback."""
    file = tmp_path / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", file)
    process = start(processes, "dask", "scheduler", *options)
    wait_until(lambda: file.exists() and file.read_text().endswith("}"), process)
    address: str = json.loads(file.read_text())["address"]
    return address


def start_worker(
    processes: list[subprocess.Popen[str]], scheduler: str, folder: Path
) -> subprocess.Popen[str]:
    """Start a worker without a nanny, so that a kill is a kill."""
    options = ("--no-nanny", "--nthreads", 1, "--no-dashboard", "--local-directory", folder)
    return start(processes, "dask", "worker", scheduler, *options)


@pytest.mark.slow
@pytest.mark.parametrize("at_first", [1, 2])
def test_a_cluster_that_loses_a_worker_finds_the_same_table(
    rule: Path,
    small_clip: Path,
    whole: Path,
    tmp_path: Path,
    processes: list[subprocess.Popen[str]],
    scheduler: str,
    at_first: int,
) -> None:
    remote = tmp_path / "remote"
    workers = [start_worker(processes, scheduler, tmp_path / f"w{i}") for i in range(at_first)]
    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(at_first, timeout=60)
    arguments: Arguments = ("sweep", rule, "--clip", small_clip, *LARGE)
    sweep = start(processes, "scotopia", *arguments, "--scheduler", scheduler, "-o", remote)
    wait_until(lambda: len(results_in(remote)) > 20, sweep, *workers)
    workers[0].kill()
    assert len(results_in(remote)) < LARGE_RESULTS
    if at_first == 1:  # then all that workers knew is gone
        start_worker(processes, scheduler, tmp_path / "successor")
    _, err = sweep.communicate(timeout=120)
    assert (sweep.returncode, err) == (0, "")
    lines = identities(results_in(remote))
    assert len(lines) == len(set(lines)) == LARGE_RESULTS
    assert rows_of(remote / "sweep.csv") == rows_of(whole / "sweep.csv")
    assert (remote / "drift.csv").read_bytes() == (whole / "drift.csv").read_bytes()


@pytest.mark.slow
def test_a_lost_scheduler_is_one_line_and_keeps_what_is_done(
    rule: Path,
    small_clip: Path,
    tmp_path: Path,
    processes: list[subprocess.Popen[str]],
    scheduler: str,
) -> None:
    out = tmp_path / "sweep"
    start_worker(processes, scheduler, tmp_path / "worker")
    arguments = (rule, "--clip", small_clip, *LARGE, "--scheduler", scheduler, "-o", out)
    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
    sweep = start(processes, "scotopia", "sweep", *arguments)
    wait_until(lambda: len(results_in(out)) > 5, sweep)  # early: the rest takes a moment
    processes[0].kill()
    text, err = sweep.communicate(timeout=60)
    assert (sweep.returncode, err) == (2, f"scotopia: {sweeping.LOST}\n")
    rows = rows_of(out / "sweep.csv")
    assert f"stopped after {len(rows)} of 40 points" in " ".join(text.split())
    assert 5 < len(results_in(out)) < LARGE_RESULTS


@pytest.mark.parametrize("listening", [False, True])
def test_an_address_where_no_scheduler_answers_is_one_line(
    run: Run,
    rule: Path,
    small_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listening: bool,
) -> None:
    monkeypatch.setattr(sweeping, "ANSWER_WITHIN", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:  # and never saying a word
            server.listen()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        out = tmp_path / "sweep"
        begin = time.monotonic()
        options = (*SMALL, "--scheduler", address, "-o", out)
        status, _, err = run("sweep", rule, "--clip", small_clip, *options)
    assert (status, err) == (
        2,
        f"scotopia: no Dask scheduler answers at {address} within 0.5 s: "
        "give the address that `dask scheduler` prints, or leave out --scheduler\n",
    )
    assert time.monotonic() - begin < 5
    assert not out.exists()


def test_an_address_that_is_none_is_one_line(
    run: Run, rule: Path, small_clip: Path, tmp_path: Path
) -> None:
    options = (*SMALL, "--scheduler", "nonsense", "-o", tmp_path / "sweep")
    status, _, err = run("sweep", rule, "--clip", small_clip, *options)
    assert (status, err) == (
        2,
        "scotopia: scheduler address 'nonsense' is of no use (missing port number in address "
        "'nonsense'): give the address that `dask scheduler` prints, or leave out --scheduler\n",
    )


def test_a_scheduler_without_workers_is_one_line(
    run: Run,
    rule: Path,
    small_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
) -> None:
    monkeypatch.setattr(sweeping, "ANSWER_WITHIN", 1.0)
    options = (*SMALL, "--scheduler", scheduler, "-o", tmp_path / "sweep")
    status, _, err = run("sweep", rule, "--clip", small_clip, *options)
    assert (status, err) == (
        2,
        f"scotopia: scheduler {scheduler} has no worker: start one with "
        f"`dask worker {scheduler}`\n",
    )


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            {"tcp://w:1": "9.9"},
            f"worker tcp://w:1 has Scotopia 9.9, here is {version('scotopia')}: install the same",
        ),
        (
            PackageNotFoundError("scotopia"),
            "a worker of tcp://s:1 has no Scotopia: install it where the worker runs",
        ),
    ],
)
def test_workers_without_this_scotopia_are_refused(answer: Any, sentence: str) -> None:
    class Other:
        def wait_for_workers(self, *_: object, **__: object) -> None: ...

        def run(self, *_: object) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    with pytest.raises(InputError) as caught:
        sweeping.check_workers(Other(), "tcp://s:1")  # type: ignore[arg-type]
    assert str(caught.value) == sentence
