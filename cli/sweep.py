"""What `scotopia sweep` does: a grid of word lengths in, one table and one page out.

Results go to a journal as they come, so that a sweep may be stopped at any time. The cluster is
Dask's, on this machine or elsewhere; rules and clips travel in the tasks, results in the answers.
"""

import asyncio
import csv
import fcntl
import io
import json
import logging
import os
import queue
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scotopia.graph.errors import InputError
from scotopia.graph.qformat import Rounding
from scotopia.model.checkpoint import digests
from scotopia.model.files import naming, write_atomically
from scotopia.model.memory import check_worker_count
from scotopia.model.score import WARM_UP
from scotopia.model.video import Clip
from scotopia.quantize.sweep import (
    Drift,
    Grid,
    Plan,
    Result,
    Row,
    Source,
    Summary,
    Task,
    drifts,
    fronts,
    key_of,
    rule_file,
    summarize,
    table,
)

from . import clips as clip_files
from .page import figure
from .rules import SHIPPED, parse_rounding, rule_path
from .stop import Stop

if TYPE_CHECKING:
    from distributed import Client, Future

    Answers = queue.SimpleQueue[tuple[Task, Future[Any]]]

#: Seconds that a scheduler may take to answer, and to have a worker.
ANSWER_WITHIN = 5.0

#: How the page and the terminal call the costs.
COST_TITLES = {
    "total_bits": "Weight bits + state bits",
    "state_bits_per_cell": "State bits a cell",
    "lut4_per_thousand_updates": "LUT4 for 1,000 updates a second",
}

DRIFT_COLUMNS = (
    *(
        "rule",
        "weight_bits",
        "state_bits",
        "rounding",
        "update_bits",
        "clip",
        "seed",
        "frame",
        "step",
    ),
    *("float_psnr", "psnr", "loss"),
)

LOST = "the scheduler is lost: start it again, and give the same command, which goes on"


@dataclass(frozen=True)
class Job:
    """What to sweep, where to compute it, and what to write.

    Attributes
    ----------
    grid
        What is compared.
    out
        Folder for the journal, the tables, the page, and the rules on a Pareto front.
    scheduler
        Address of a Dask scheduler; None for a cluster of this machine's own.
    workers
        Processes of this machine's own cluster; None for one a core.
    """

    grid: Grid
    out: Path
    scheduler: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers {self.workers} are fewer than 1: give 1 or more")
        check_worker_count(self.workers)
        if self.scheduler is not None and self.workers is not None:
            raise InputError(
                f"the workers of {self.scheduler} are its own: leave out --workers {self.workers}"
            )


@dataclass(frozen=True)
class Outcome:
    """What a sweep found out.

    Attributes
    ----------
    grid
        What was compared.
    rows
        Points, in order.
    summaries
        Designs that were scored on all clips and seeds, in order.
    fronts
        By cost, the cheapest first.
    drifts
        In order.
    """

    grid: Grid
    rows: list[Row]
    summaries: list[Summary]
    fronts: dict[str, list[Summary]]
    drifts: list[Drift]

    @classmethod
    def of(cls, plan: Plan, results: dict[str, Result]) -> "Outcome":
        """Gather all that is known of a plan."""
        rows = table(plan, results)
        summaries = summarize(plan.grid, rows)
        return cls(plan.grid, rows, summaries, fronts(summaries), drifts(plan, results))

    @property
    def front(self) -> list[Summary]:
        """Designs on a Pareto front, the best first."""
        chosen = {id(one): one for front in self.fronts.values() for one in front}
        return sorted(chosen.values(), key=lambda one: (-one.psnr, one.total_bits))

    @property
    def refusals(self) -> dict[str, int]:
        """Points that were refused, by the reason."""
        found: dict[str, int] = {}
        for row in self.rows:
            if row.loss is None:
                found[row.reason] = found.get(row.reason, 0) + 1
        return found


def require_extra() -> None:
    """Raise InputError unless the packages of the extra are there."""
    try:
        import distributed  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"package {error.name} is missing, which only a sweep needs: "
            "pip install 'scotopia[sweep]'"
        ) from error


def parse_numbers(text: str, option: str) -> list[int]:
    """Numbers that a user separated by commas, in order, each once.

    Raises
    ------
    InputError
        If there is none, or something else.
    """
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise InputError(
            f"--{option} {text!r} are not whole numbers: separate them by commas, as in 4,6,8"
        ) from error
    if numbers[0] < 0:
        raise InputError(f"--{option} {numbers[0]} is negative: give 0 or more")
    return numbers


def parse_roundings(text: str) -> list[Rounding]:
    """Roundings that a user separated by commas, each once; InputError, if one is unknown."""
    return [parse_rounding(name) for name in dict.fromkeys(map(str.strip, text.split(",")))]


def read_rules(names: Sequence[str]) -> list[Source]:
    """Float rules that a user named."""
    return [
        Source.read(rule_path(name), name if name in SHIPPED else Path(name).stem) for name in names
    ]


def read_clips(names: Sequence[str], size: int | None, frames: int | None = None) -> list[Clip]:
    """Clips that a user named, no more than the first `frames` frames of each.

    Raises
    ------
    InputError
        If there is none, or the frames are too few to be scored.
    """
    if not names:
        raise InputError("no clip is named: give --clip davis_road, or a file of your own")
    if frames is not None and frames <= WARM_UP:
        raise InputError(
            f"--frames {frames} are too few, the first {WARM_UP} are warm-up: "
            f"give {WARM_UP + 1} or more"
        )
    found = clip_files.read_clips(names, size)
    return [Clip(clip.name, clip.frames[:frames]) for clip in found]


def read_results(path: Path) -> dict[str, Result]:
    """Results in a journal by `Task.key`; what a kill cut short, is left out.

    Raises
    ------
    InputError
        If a line is no result.
    """
    content = path.read_bytes() if path.exists() else b""
    results = {}
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            entry = json.loads(line)
            results[key_of(entry["what"])] = dict(entry["result"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(
                f"{path} has no result in line {number}: remove that line, "
                "and the sweep computes it again"
            ) from error
    return results


class Journal:
    """Results of tasks in a file, a line of JSON each.

    A line is written at once when its result is there. A kill can cut the last one short: it is
    dropped, and computed again. Nothing in the file is executed or unpickled.

    Attributes
    ----------
    results
        By `Task.key`.

    Raises
    ------
    InputError
        If another process has it open, or a line is no result.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"{path} belongs to a sweep that is running: wait for it, or choose another -o"
                ) from error
            self.results = read_results(path)
            os.ftruncate(self._file, path.read_bytes().rfind(b"\n") + 1)
        except BaseException:
            os.close(self._file)
            raise

    def add(self, task: Task, result: Result) -> None:
        """Keep a result: once this returns, no kill of the process can lose it."""
        line = json.dumps({"what": task.what, "result": result}, separators=(",", ":")) + "\n"
        content = line.encode()
        with naming(self._path):
            while content:  # a full disk takes a part, then raises OSError
                content = content[os.write(self._file, content) :]
        self.results[task.key] = result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._file)


def run_sweep(job: Job, progress: Progress, console: Console) -> Outcome:
    """Compute what is not yet in the folder, and write its tables, its page and the best rules.

    Parameters
    ----------
    progress
        A bar that is not yet shown: it is, once everything that may be refused has been.

    Raises
    ------
    InputError
        If the cluster cannot be reached or is lost; what is done is kept.
    SystemExit
        On SIGINT and SIGTERM, once the tables are written; status 128 + the signal's number.
    """
    require_extra()
    plan = Plan(job.grid)
    path = job.out / "results.jsonl"
    known = read_results(path)
    with Stop() as stop, ExitStack() as stack:
        client = None
        if any(task.key not in known for task in plan.tasks):
            with console.status("waiting for the workers"):
                client = stack.enter_context(connect(job.scheduler, job.workers))
        journal = stack.enter_context(Journal(path))
        try:
            if client is not None:
                with progress:
                    compute(plan, journal, client, progress, stop)
        finally:
            outcome = Outcome.of(plan, journal.results)
            write_tables(outcome, job.out)
            if len(outcome.rows) < len(plan.grid.points) or stop.received:
                console.print(
                    f"stopped after {len(outcome.rows)} of {len(plan.grid.points)} points: "
                    f"the same command goes on from {job.out}",
                    soft_wrap=True,
                )
        if stop.received:
            raise SystemExit(128 + stop.received)
        rules = {
            rule_path_of(one, job.out): rule_file(
                journal.results[plan.integer_rules[one.design].key]
            )
            for one in outcome.front
        }
    from .sweep_page import render_page

    page = render_page(outcome).encode()
    for path, content in {**rules, job.out / "index.html": page}.items():
        write_atomically(path, content)
    return outcome


def rule_path_of(summary: Summary, folder: Path) -> Path:
    """Path of a design's integer rule in the sweep's folder."""
    return folder / "rules" / (str(summary.design).replace(" ", "-") + ".safetensors")


@contextmanager
def connect(scheduler: str | None, workers: int | None) -> "Iterator[Client]":
    """Connect to a Dask cluster, or start one on this machine for as long as it is needed.

    Raises
    ------
    InputError
        If nobody answers at the address, or there is no worker, or one has another Scotopia.
    """
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    # A clip travels in a task of its own, so that no worker's death can lose it.
    settings = {"distributed.admin.large-graph-warning-threshold": "1TB"}
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        target: Any = scheduler
        if scheduler is None:
            with _children_ignore_interrupts():
                target = stack.enter_context(
                    LocalCluster(  # type: ignore[no-untyped-call]
                        n_workers=workers or CPU_COUNT,
                        threads_per_worker=1,  # and Dask gives BLAS one as well
                        processes=True,
                        host="127.0.0.1",
                        dashboard_address="127.0.0.1:0",
                        memory_limit=0,  # with a limit, a worker would pickle to disk
                        silence_logs=logging.CRITICAL,
                    )
                )
        else:
            _check_scheduler(scheduler)
        for name in ("client", "core", "comm"):
            logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)
        client = stack.enter_context(
            Client(target, timeout=ANSWER_WITHIN, set_as_default=False)  # type: ignore[no-untyped-call]
        )
        check_workers(client, scheduler)
        yield client


@contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Have processes that are started in here, by any thread, not see a terminal's Ctrl-C.

    It goes to all of them, but only this one knows what to keep. A mask is inherited, also by what
    is started anew later; meanwhile a Ctrl-C waits.
    """
    resource_tracker.ensure_running()  # which would lift the mask when the first child starts
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _check_scheduler(address: str) -> None:
    """Raise InputError unless a Dask scheduler answers: a `Client` would complain at length."""
    from distributed.core import rpc
    from distributed.security import Security

    async def ask() -> Any:
        arguments = Security().get_connection_args("client")  # type: ignore[no-untyped-call]
        async with rpc(address, connection_args=arguments) as remote:  # type: ignore[no-untyped-call]
            return await remote.identity()

    async def ask_for_a_while() -> Any:
        return await asyncio.wait_for(ask(), ANSWER_WITHIN)

    remedy = "give the address that `dask scheduler` prints, or leave out --scheduler"
    try:
        kind = asyncio.run(ask_for_a_while())["type"]
    except TimeoutError as error:
        raise InputError(
            f"no Dask scheduler answers at {address} within {ANSWER_WITHIN:g} s: {remedy}"
        ) from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"scheduler address {address!r} is of no use ({error}): {remedy}"
        ) from error
    if kind != "Scheduler":
        raise InputError(f"at {address} answers a Dask {kind.lower()}, not a scheduler: {remedy}")


def check_workers(client: "Client", scheduler: str | None) -> None:
    """Raise InputError unless there is a worker, and all have this version of Scotopia."""
    try:
        client.wait_for_workers(1, timeout=ANSWER_WITHIN if scheduler else None)
        # By its name alone, which a worker without Scotopia understands, too.
        found = client.run(version, "scotopia")
    except TimeoutError as error:
        raise InputError(
            f"scheduler {scheduler} has no worker: start one with `dask worker {scheduler}`"
        ) from error
    except PackageNotFoundError as error:
        raise InputError(
            f"a worker of {scheduler} has no Scotopia: install it where the worker runs"
        ) from error
    for worker, other in found.items():
        if other != version("scotopia"):
            raise InputError(
                f"worker {worker} has Scotopia {other}, here is {version('scotopia')}: "
                "install the same"
            )


def compute(plan: Plan, journal: Journal, client: "Client", progress: Progress, stop: Stop) -> None:
    """Compute what the journal has not yet, until it has all or a signal is received.

    Raises
    ------
    InputError
        If the scheduler is lost, or a task has killed its worker time and again.
    """
    scores = {task.key for task in plan.scores.values()}
    runs = {task.key for task in plan.drifts.values()}
    bars = {
        progress.add_task(
            title, total=len(keys), completed=len(keys & journal.results.keys())
        ): keys
        for title, keys in (("points", scores), ("drift runs", runs))
    }
    answers: Answers = queue.SimpleQueue()
    futures: dict[str, Future[Any]] = {}
    this_run = uuid4().hex[:8]  # no other sweep on the cluster has tasks of these names

    def submit(task: Task) -> "Future[Any] | Result":
        if task.key in journal.results:
            return journal.results[task.key]
        if task.key not in futures:
            arguments = [
                submit(part) if isinstance(part, Task) else part for part in task.arguments
            ]
            name = f"{task.compute.__name__}-{task.key}-{this_run}"
            futures[task.key] = client.submit(task.compute, *arguments, key=name, pure=False)
        return futures[task.key]

    try:
        # Not all at once, because Dask takes what is ready before what is urgent.
        for stage in plan.stages:
            missing = {task.key: task for task in stage if task.key not in journal.results}
            for task in missing.values():
                submit(task)
            for key, task in missing.items():
                futures[key].add_done_callback(partial(_put, answers, task))  # type: ignore[no-untyped-call]
            for task, future in _arriving(answers, len(missing), client, stop):
                journal.add(task, _result_of(task, future))
                for bar, keys in bars.items():
                    progress.update(bar, advance=task.key in keys)
            if stop.received:
                return
    finally:
        if client.status == "running":
            client.cancel(list(futures.values()))  # type: ignore[no-untyped-call]


def _put(answers: "Answers", task: Task, future: "Future[Any]") -> None:
    answers.put((task, future))


def _result_of(task: Task, future: "Future[Any]") -> Result:
    from distributed import KilledWorker

    try:
        result: Result = future.result()
    except KilledWorker as error:
        raise InputError(
            f"worker after worker died of {task.what}: give them more memory, or start fewer"
        ) from error
    except CancelledError as error:
        raise InputError(LOST) from error
    return result


def _arriving(
    answers: "Answers", count: int, client: "Client", stop: Stop
) -> "Iterator[tuple[Task, Future[Any]]]":
    """Yield answers as they come: all there will be, or those that are there at a signal."""
    while count:
        try:
            yield answers.get(timeout=0 if stop.received else 0.1)
            count -= 1
        except queue.Empty:
            if stop.received:
                return
            if client.status not in ("running", "connecting"):
                raise InputError(LOST) from None


def write_tables(outcome: Outcome, folder: Path) -> None:
    """Write `sweep.csv`, a row for each point, and `drift.csv`, one for each frame of a run."""
    grid = outcome.grid
    columns = [column.name for column in fields(Row)]
    _write_csv(folder / "sweep.csv", columns, map(astuple, outcome.rows))
    shown = (grid.clips[0].name, grid.seeds[0])
    _write_csv(
        folder / "drift.csv",
        DRIFT_COLUMNS,
        (
            (*astuple(run.design), *shown, frame, *figures)
            for run in outcome.drifts
            for frame, figures in enumerate(
                zip(run.step, run.float_psnr, run.psnr, run.loss, strict=True)
            )
        ),
    )


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def front_table(outcome: Outcome) -> Table:
    """Table of the designs on a Pareto front, the best first; a star where they are on it."""
    view = Table("design", "PSNR, dB", "loss, dB", box=SIMPLE_HEAD)
    for cost in COST_TITLES.values():
        view.add_column(cost)
    for column in view.columns[1:]:
        column.justify = "right"
    for one in outcome.front:
        costs = [
            figure(getattr(one, cost)) + (" *" if one in outcome.fronts[cost] else "  ")
            for cost in COST_TITLES
        ]
        view.add_row(str(one.design), f"{one.psnr:.2f}", f"{one.loss:.2f}", *costs)
    view.caption = "* on the Pareto front of PSNR against this cost"
    return view


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Value of a sweep for machines."""
    grid = outcome.grid
    return {
        "rules": {rule.name: rule.digest for rule in grid.rules},
        "clips": digests(list(grid.clips)),
        "size": clip_files.sizes_of(grid.clips),
        "calibration": digests(list(grid.calibration)),
        "counted_clips": grid.counted,
        "density": grid.density,
        "seeds": list(grid.seeds),
        "points": [asdict(row) for row in outcome.rows],
        "designs": [_summary_json(one) for one in outcome.summaries],
        "fronts": {
            cost: [_summary_json(one) for one in front] for cost, front in outcome.fronts.items()
        },
        "drift": [
            asdict(run.design)
            | {
                "steps": int(run.step[-1]),
                "loss_per_1000_steps": run.slope,
                "mean_loss": round(float(run.loss.mean()), 4),
            }
            for run in outcome.drifts
        ],
        "refused": outcome.refusals,
    }


def _summary_json(one: Summary) -> dict[str, Any]:
    figures = asdict(one)
    design: dict[str, Any] = figures.pop("design")
    return design | figures | {"total_bits": one.total_bits}
