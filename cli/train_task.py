"""`scotopia train --task`: a step graph learns to grow, or what a task of the user's asks for."""

import inspect
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from rich.progress import Progress

from scotopia.graph.errors import InputError
from scotopia.model.files import rule_kind
from scotopia.model.float_rule import KIND, FloatRule
from scotopia.model.front.loading import load_function, load_instance
from scotopia.model.growing.task import GrowingTask
from scotopia.model.options import LoopOptions
from scotopia.model.tasks import Task
from scotopia.model.train import Trainer
from scotopia.model.trainable import TrainableGraph
from scotopia.quantize.fake_graph import FakeQuantGraph
from scotopia.quantize.integer_rule import KIND as INTEGER_KIND
from scotopia.quantize.integer_rule import GraphRule, IntegerRule

from .importing import arguments_of
from .rules import rule_path
from .train import Course, Prepared, guarded


@dataclass
class Learning(Course[TrainableGraph]):
    """A step graph, and what it learns.

    Attributes
    ----------
    rule
        What training starts from.
    start
        Its name; None for the task's own.
    """

    task: Task
    options: LoopOptions
    rule: TrainableGraph
    start: str | None

    @property
    def beginning(self) -> str:
        """What training starts from, in words that a checkpoint keeps."""
        found = sha256()
        for tensor in self.rule.state_dict().values():
            found.update(tensor.numpy().tobytes())
        return f"{self.start or 'the task'} ({found.hexdigest()[:16]})"

    def describe(self) -> dict[str, Any]:
        """Return the task's numbers, and the graph."""
        return self.task.describe(self.rule)

    def prepare(self, device: str, progress: Progress) -> Prepared[TrainableGraph]:
        """Begin the training."""
        return Prepared(Trainer(self.rule, self.task, self.options, device=device))


def learning(
    name: str,
    target: str | None,
    arguments: str,
    loss: str | None,
    start: str | None,
    quantized: str | None,
    given: dict[str, Any],
) -> Learning:
    """Find a task, and the rule that is to learn it.

    Parameters
    ----------
    name
        "growing", or "file.py:Class", which is run.
    target
        Picture that grows.
    arguments
        Of the task's class, such as "padding=8".
    loss
        "file.py:function", which is run; None for the task's own.
    start
        Name or file of a float graph; None for the task's own.
    quantized
        Name or file of an integer rule whose weights are trained in its place; or None.
    given
        Fields of `LoopOptions`; None is one that was not given.

    Raises
    ------
    InputError
        If one of them is not there or does not fit.
    """
    named = arguments_of(arguments)
    if name == "growing":
        if target is None:
            raise InputError("task growing has no target: add --target PICTURE.png, or lizard")
        named = {"target": target} | named
        known = [one for one in inspect.signature(GrowingTask).parameters if one != "target"]
        for key in named:
            if key not in ("target", *known):
                raise InputError(f"task growing has no {key}: it has {', '.join(known)}")
        task: Task = GrowingTask(**named)
    elif target is not None:
        raise InputError(f"target {target} is for task growing: name it by --args for {name}")
    elif ":" not in name:
        raise InputError(f"task {name!r} is unknown: choose scotopic, growing or file.py:Class")
    else:
        task = load_instance(name, Task, named, "task")
        for method in ("start", "check", "batch", "loss", "keep", "score"):
            setattr(task, method, guarded(f"{name}.{method}", getattr(task, method)))
    if loss is not None:
        task.loss = guarded(loss, load_function(loss, "loss"))  # type: ignore[method-assign]
        task.loss_name = loss
    options = replace(task.defaults, **{k: v for k, v in given.items() if v is not None})
    torch.manual_seed(options.seed)
    rule = _start(task, name, start) if quantized is None else _integers(quantized, start)
    task.check(rule.rule)
    return Learning(task, options, rule, quantized or start)


def _start(task: Task, name: str, start: str | None) -> TrainableGraph:
    if start is None:
        rule = task.start()
        if not isinstance(rule, FloatRule):
            raise InputError(f"start of {name} is a {type(rule).__name__}: return a FloatRule")
        return TrainableGraph(rule)
    path = rule_path(start)
    if (kind := rule_kind(path)) != KIND:
        raise InputError(
            f"start {start} is a Scotopia {kind}, and task {name} trains float graphs: name "
            "one that `scotopia import` wrote"
        )
    return TrainableGraph(FloatRule.load(path))


def _integers(name: str, start: str | None) -> FakeQuantGraph:
    if start is not None:
        raise InputError(f"start {start} is given beside --quantize {name}: leave one out")
    path = rule_path(name)
    if (kind := rule_kind(path)) != INTEGER_KIND:
        raise InputError(
            f"rule {name} is a Scotopia {kind}, and a task trains integer rules in their formats: "
            f"name what `scotopia quantize {name}` writes"
        )
    rule = IntegerRule.load(path)
    if not isinstance(rule, GraphRule):
        raise InputError(f"rule {name} is one of two layers: leave out --task")
    return FakeQuantGraph(rule)
