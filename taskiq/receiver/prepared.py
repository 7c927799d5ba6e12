"""What depends on a task only, worked out once instead of per message."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from taskiq_dependencies import DependencyGraph

from taskiq.callables import is_coroutine_function, resolved_hints
from taskiq.receiver.grouping import BatchPlan
from taskiq.receiver.params_parser import ParameterCasts

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq.batch import BatchConfig


class PreparedTask:
    """One function, ready to be called for messages.

    :param name: the task's name.
    :param function: what is called.
    :param batch: how its messages are gathered, `None` to call it for each.
    :raises NameError: when a type hint cannot be resolved.
    :ivar dependencies: the graph of its dependencies, `None` when it has none.
    :ivar plan: how its messages are placed into batches, `None` for a plain task.
    """

    __slots__ = (
        "_overridden",
        "batch",
        "casts",
        "dependencies",
        "function",
        "graph",
        "hints",
        "is_async",
        "name",
        "plan",
        "signature",
    )

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        batch: BatchConfig | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.batch = batch
        self.signature = inspect.signature(function)
        self.hints = resolved_hints(function)
        self.graph = DependencyGraph(function)
        self.dependencies = None if self.graph.is_empty() else self.graph
        self.is_async = is_coroutine_function(function)
        self.casts = ParameterCasts(self.signature, self.hints)
        self.plan: BatchPlan | None = None
        if batch is not None:
            filled_in = _parameters_filled_in(self.graph)
            self.plan = BatchPlan(batch, self.signature, self.hints, filled_in)
        # The graph with replaced dependencies, and the replacements it was built for.
        self._overridden: tuple[dict[Any, Any], DependencyGraph] | None = None

    def graph_for(self, overrides: dict[Any, Any]) -> DependencyGraph | None:
        """Give the graph to resolve, with dependencies replaced as asked.

        :param overrides: replacements by dependency, mostly empty.
        :returns: the graph, `None` when there is nothing to resolve.
        """
        if self.dependencies is None or not overrides:
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
