"""What depends on a task only, worked out once instead of per message."""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

from taskiq_dependencies import DependencyGraph

from taskiq.callables import is_coroutine_function, resolved_hints
from taskiq.outcome import Failed
from taskiq.policies import combined
from taskiq.receiver.containment import attempt
from taskiq.receiver.params_parser import ParameterCasts
from taskiq.receiver.placing import BatchPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq.abc.broker import AsyncBroker
    from taskiq.decor import AsyncTaskiqDecoratedTask
    from taskiq.policies import FailurePolicy


class PreparedTask:
    """One function, ready to be called for messages.

    :param name: the task's name.
    :param function: what is called.
    :param source: what its decorator made; `None` for a plain function.
    :param default: what its broker says of failed messages.
    :raises NameError: when a type hint cannot be resolved.
    :ivar dependencies: the graph of its dependencies, `None` when it has none.
    :ivar policy: what becomes of its messages that fail, the broker's word included.
    :ivar is_limited: whether they are delivered a limited number of times.
    :ivar rate: how often it may start, `None` for no limit and for a batch task.
    :ivar unique_ttl: seconds that its messages hold a key, `None` if they hold none.
    :ivar is_special: whether its messages wait for something before they run (for
        others of their batch, or for its rate) or may hold a key.
    :ivar plan: how its messages are placed into batches, `None` for a plain task.
    """

    __slots__ = (
        "_overridden",
        "casts",
        "default",
        "dependencies",
        "function",
        "graph",
        "hints",
        "is_async",
        "is_limited",
        "is_special",
        "name",
        "plan",
        "policy",
        "rate",
        "signature",
        "source",
        "unique_ttl",
    )

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        source: AsyncTaskiqDecoratedTask[Any, Any] | None = None,
        default: FailurePolicy | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.source = source
        self.default = default
        own = None if source is None else source.failure_policy
        self.policy = combined(own, default)
        self.is_limited = bool(self.policy and self.policy.max_deliveries)
        self.signature = inspect.signature(function)
        self.hints = resolved_hints(function)
        self.graph = DependencyGraph(function)
        self.dependencies = None if self.graph.is_empty() else self.graph
        self.is_async = is_coroutine_function(function)
        self.casts = ParameterCasts(self.signature, self.hints)
        self.plan: BatchPlan | None = None
        if source is not None and source.batch is not None:
            filled_in = _parameters_filled_in(self.graph)
            self.plan = BatchPlan(source.batch, self.signature, self.hints, filled_in)
        self.rate = None if source is None or source.batch else source.rate
        unique = None if source is None else source.unique
        self.unique_ttl = None if unique is None else unique.ttl
        self.is_special = bool(self.plan or self.rate or unique)
        # The graph with replaced dependencies, and the replacements it was built for.
        self._overridden: tuple[dict[Any, Any], DependencyGraph] | None = None

    def graph_for(self, overrides: dict[Any, Any]) -> DependencyGraph:
        """Give the graph to resolve, with dependencies replaced as asked.

        To be called where there is something to resolve.

        :param overrides: replacements by dependency, mostly empty.
        """
        assert self.dependencies is not None  # noqa: S101 - see above
        if not overrides:
            return self.dependencies
        if self._overridden is None or self._overridden[0] != overrides:
            replaced = dict(overrides)
            graph = DependencyGraph(self.function, replaced_deps=replaced)
            self._overridden = (replaced, graph)
        return self._overridden[1]


def _parameters_filled_in(graph: DependencyGraph) -> set[str]:
    """List the parameters of the graph's own function that are dependencies."""
    return {
        dependency.param_name
        for parent, dependencies in graph.dependencies.items()
        if parent.dependency == graph.target
        for dependency in dependencies
    }


class PreparedTasks:
    """The tasks of one receiver, each prepared once.

    Somebody may take entries out of the public collections: a task that is not in
    `known` is prepared again.

    :param broker: whose tasks they are.
    :ivar known: names of the tasks.
    :ivar signatures: their parameters, by name of the task.
    :ivar hints: their resolved annotations.
    :ivar graphs: their dependencies.
    """

    def __init__(self, broker: AsyncBroker) -> None:
        self._broker = broker
        self.known: set[str] = set()
        self.signatures: dict[str, inspect.Signature] = {}
        self.hints: dict[str, dict[str, Any]] = {}
        self.graphs: dict[str, DependencyGraph] = {}
        self._prepared: dict[str, PreparedTask] = {}
        self._change = threading.RLock()

    def of(self, task: AsyncTaskiqDecoratedTask[Any, Any]) -> PreparedTask | None:
        """Give a task as it is registered now.

        :returns: `None` when it cannot be prepared; it is tried again when it is run.
        """
        name = task.task_name
        prepared = self._prepared.get(name)
        if (
            prepared is None
            or prepared.source is not task
            or prepared.default is not self._broker.failure_policy
            or name not in self.known
        ):
            return self._prepared_anew(task, prepared)
        return prepared

    def _prepared_anew(
        self,
        task: AsyncTaskiqDecoratedTask[Any, Any],
        stale: PreparedTask | None,
    ) -> PreparedTask | None:
        """Prepare a task, unless another thread has done so meanwhile.

        Messages that are to share a call have to be of the same one.
        """
        with self._change:
            latest = self._prepared.get(task.task_name)
            if latest is not None and latest is not stale and latest.source is task:
                return latest
            made = attempt(self.prepare, task.task_name, task.original_func, task)
            return None if isinstance(made, Failed) else made

    def by_name(self, name: str) -> PreparedTask | None:
        """Give what a name was prepared as; `None` for what is not known."""
        return self._prepared.get(name) if name in self.known else None

    def prepare(
        self,
        name: str,
        function: Callable[..., Any],
        source: AsyncTaskiqDecoratedTask[Any, Any] | None = None,
    ) -> PreparedTask:
        """Work out what depends on a task only.

        :param source: what its decorator made; `None` for a plain function.
        :raises NameError: when a type hint of it cannot be resolved.
        """
        # Not known until it is: what fails now is tried again with the next message.
        self.known.discard(name)
        default = self._broker.failure_policy
        prepared = PreparedTask(name, function, source, default)
        self.signatures[name] = prepared.signature
        self.hints[name] = prepared.hints
        self.graphs[name] = prepared.graph
        self.known.add(name)
        # Last: for other threads it is right from now on.
        self._prepared[name] = prepared
        return prepared
