"""A plugin for mypy: who sends a task is not asked for its dependencies.

Settings of mypy switch it on: ``plugins = ["taskiq.mypy"]``. A task whose function has
parameters marked with `TaskiqDepends`, as a default or in an `Annotated`, becomes a
`TaskWithDependencies`: what is sent does without them, and a direct call takes them.
The item of a batch task gets the name that the function has for its list: it may be
given by that. A `functools.partial` has the parameters that are left of the function.

What `Annotated` carries is nowhere in the types of mypy. So the sources of functions,
and of the aliases they use, are read once more; what cannot be found in them stays a
parameter.
"""

from __future__ import annotations

import ast
import os
import tokenize
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from mypy.checker import TypeChecker
from mypy.nodes import (
    ArgKind,
    Decorator,
    FuncDef,
    RefExpr,
    SymbolNode,
    SymbolTable,
    TypeInfo,
)
from mypy.plugin import FunctionContext, MethodContext, Plugin
from mypy.subtypes import find_member
from mypy.types import (
    AnyType,
    CallableType,
    Instance,
    Parameters,
    ProperType,
    Type,
    TypeOfAny,
    get_proper_type,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mypy.nodes import MypyFile
    from mypy.options import Options

_TASK: Final = "taskiq.decor.AsyncTaskiqDecoratedTask"
_BATCH_TASK: Final = "taskiq.decor.BatchTask"

#: What a task that has dependencies becomes.
_WITH_DEPENDENCIES: Final = {
    _TASK: "taskiq.decor.TaskWithDependencies",
    _BATCH_TASK: "taskiq.decor.BatchTaskWithDependencies",
}

#: What `broker.task(...)` gives: called with the function, they make the task.
_DECORATORS: Final = (
    "taskiq.decor.TaskDecorator.__call__",
    "taskiq.decor.BatchDecorator.__call__",
    "taskiq.decor.SharedBatchDecorator.__call__",
)

#: Whatever makes a mark; a worker resolves those of FastAPI, too.
_MARKERS: Final = frozenset(
    {
        "fastapi.param_functions.Depends",
        "fastapi.params.Depends",
        "taskiq_dependencies.dependency.Depends",
        "taskiq_dependencies.dependency.Dependency",
    },
)
_ANNOTATED: Final = frozenset({"typing.Annotated", "typing_extensions.Annotated"})

#: What a parameter after one that is left out becomes: given by name.
_BY_NAME: Final = {
    ArgKind.ARG_POS: ArgKind.ARG_NAMED,
    ArgKind.ARG_OPT: ArgKind.ARG_NAMED_OPT,
}

_Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"

#: Names of classes and functions from the outside in, below a module.
_Path: TypeAlias = "tuple[str, ...]"


def plugin(version: str) -> type[Plugin]:  # noqa: ARG001 - what mypy calls
    """Give mypy the plugin."""
    return TaskiqPlugin


class TaskiqPlugin(Plugin):
    """Takes the dependencies out of what tasks are sent with."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._sources = _Sources()

    def get_method_hook(
        self,
        fullname: str,
    ) -> Callable[[MethodContext], Type] | None:
        """Look at `task` and `register_task` of brokers, and at what `task` gives."""
        if fullname.endswith((".task", ".register_task", *_DECORATORS)):
            return self._made_task
        return None

    def get_function_hook(
        self,
        fullname: str,
    ) -> Callable[[FunctionContext], Type] | None:
        """Look at `shared_task`, and at other names of a broker's `task`."""
        return self._made_task if fullname.endswith("task") else None

    def _made_task(self, context: MethodContext | FunctionContext) -> Type:
        """Give the type of the task that a function has just become."""
        made = get_proper_type(context.default_return_type)
        if not isinstance(made, Instance):
            return made
        with_dependencies = _WITH_DEPENDENCIES.get(made.type.fullname)
        given = _made_of(context)
        taken = _taken(made, given)
        if with_dependencies is None or taken is None:
            return made
        sent = _without(taken, self._dependencies(context))
        own = _own(made, given)
        if sent is taken:
            return Instance(made.type, [taken, made.args[1], *own])
        symbol = self.lookup_fully_qualified(with_dependencies)
        if symbol is None or not isinstance(symbol.node, TypeInfo):
            return made
        return Instance(symbol.node, [sent, made.args[1], taken, *own])

    def _dependencies(self, context: MethodContext | FunctionContext) -> set[str]:
        """Give the names of parameters a task is sent without."""
        if not isinstance(context.api, TypeChecker):
            return set()  # no other is known, but its type promises less
        reader = _Reader(context.api.modules, self._sources)
        if isinstance(context.context, Decorator):
            # Known whatever the decorators below have made of its type.
            function: SymbolNode | None = context.context.func
        else:
            given = _made_of(context)
            if isinstance(given, Instance) and _is_task_with_dependencies(given):
                return _left_out(given)
            function = _definition(given)
            if function is None and _partial(given) is not None:
                # It came out of the cache, where a type has no definition.
                function = reader.partially_called(_names_of(context))
        if isinstance(function, Decorator):
            function = function.func
        if not isinstance(function, FuncDef):
            return set()
        return reader.dependencies(function, context.api.tree.fullname)


def _made_of(context: MethodContext | FunctionContext) -> ProperType | None:
    """Give the type of what becomes a task."""
    given = next((each[0] for each in context.arg_types if each), None)
    return get_proper_type(given)


def _taken(made: Instance, given: ProperType | None) -> Parameters | None:
    """Give the parameters of a task, with all that is known of their names.

    :param made: the task, as its overloads have it.
    :param given: what it was made of.
    """
    taken = get_proper_type(made.args[0]) if made.args else None
    if not isinstance(taken, Parameters):
        return None
    function = _called(given)
    if function is None or not function.arg_types:
        return taken
    is_batch = made.type.fullname == _BATCH_TASK
    if _partial(given) is not None:
        taken = _left_of(function, is_batch=is_batch)
    if not is_batch or not taken.arg_types or not function.arg_kinds[0].is_positional():
        return taken
    # In the types of `Callable` and `Concatenate` the first parameter has no name.
    names = [function.arg_names[0], *taken.arg_names[1:]]
    kinds, variables = taken.arg_kinds, taken.variables
    return Parameters(taken.arg_types, kinds, names, variables=variables)


def _own(made: Instance, given: ProperType | None) -> list[Type]:
    """Give what a batch task knows of its function, with the name of the list."""
    function = _called(given)
    if made.type.fullname != _BATCH_TASK or function is None:
        return [*made.args[2:]]
    return [_left_of(function, is_batch=False), function.ret_type]


def _left_of(partial: CallableType, *, is_batch: bool) -> Parameters:
    """Give the parameters of a `functools.partial`, which mypy takes for anything.

    Those after one that was given by name can be given by name only.
    """
    types, kinds = [*partial.arg_types], [*partial.arg_kinds]
    if is_batch:
        types[0] = _item_of(types[0])
    if ArgKind.ARG_NAMED_OPT in kinds:
        first = kinds.index(ArgKind.ARG_NAMED_OPT)
        kinds[first:] = [_BY_NAME.get(each, each) for each in kinds[first:]]
    return Parameters(types, kinds, partial.arg_names, variables=partial.variables)


def _item_of(list_type: Type) -> Type:
    """Give the type of what a list, or what stands for one, has in it."""
    given = get_proper_type(list_type)
    if isinstance(given, Instance) and len(given.args) == 1:
        return given.args[0]
    return AnyType(TypeOfAny.special_form)


def _partial(given: ProperType | None) -> CallableType | None:
    """Give what a `functools.partial` can still be called with."""
    if not isinstance(given, Instance) or given.extra_attrs is None:
        return None
    left = get_proper_type(given.extra_attrs.attrs.get("__mypy_partial"))
    return left if isinstance(left, CallableType) else None


def _called(given: ProperType | None) -> CallableType | None:
    """Give what is called: a function, a constructor, `__call__` or a partial."""
    if isinstance(given, Instance):
        if (left := _partial(given)) is not None:
            return left
        given = get_proper_type(find_member("__call__", given, given))
    return given if isinstance(given, CallableType) else None


def _names_of(context: MethodContext | FunctionContext) -> str:
    """Give the full name of the variable that becomes a task; "" for all else."""
    given = next((each[0] for each in context.args if each), None)
    return given.fullname if isinstance(given, RefExpr) else ""


def _is_task_with_dependencies(given: Instance) -> bool:
    return given.type.fullname in _WITH_DEPENDENCIES.values()


def _definition(given: ProperType | None) -> SymbolNode | None:
    """Find what runs: a function, a method, a constructor, `__call__` or a partial."""
    if isinstance(given, CallableType):
        return given.definition
    if isinstance(given, Instance):
        if (left := _partial(given)) is not None:
            return left.definition
        found = given.type.get("__call__")
        return None if found is None else found.node
    return None


def _left_out(task: Instance) -> set[str]:
    """Give the names of what a task that is registered again is sent without."""
    sent, _, called = map(get_proper_type, task.args[:3])
    if not isinstance(sent, Parameters) or not isinstance(called, Parameters):
        return set()
    return {name for name in called.arg_names if name} - {*sent.arg_names}


def _without(taken: Parameters, dependencies: set[str]) -> Parameters:
    """Leave parameters out; those after them can be given by name only.

    :returns: `taken` itself when none of its parameters is a dependency.
    """
    kept: list[tuple[Type, ArgKind, str | None]] = []
    kinds = taken.arg_kinds
    after_one = False
    for each, kind, name in zip(taken.arg_types, kinds, taken.arg_names, strict=True):
        if name in dependencies:
            after_one = after_one or kind.is_positional()
        elif not after_one:
            kept.append((each, kind, name))
        elif kind is not ArgKind.ARG_STAR:
            kept.append((each, _BY_NAME.get(kind, kind), name))
    if len(kept) == len(kinds):
        return taken
    return Parameters(
        [each for each, _, _ in kept],
        [kind for _, kind, _ in kept],
        [name for _, _, name in kept],
        variables=taken.variables,
    )


class _Source(ast.NodeVisitor):
    """What is looked up in the code of one module.

    :ivar functions: each by the line of its `def`, and by its path.
    :ivar values: what is assigned to names, by path.
    :ivar imported: full names that absolute imports bind, by path.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.functions: dict[int | _Path, tuple[_Function, _Path]] = {}
        self.values: dict[_Path, ast.expr] = {}
        self.imported: dict[_Path, str] = {}
        self._path: _Path = ()
        self.visit(tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_inside(node)

    def visit_FunctionDef(self, node: _Function) -> None:
        found = node, self._path
        self.functions[node.lineno] = self.functions[self._of(node.name)] = found
        self._visit_inside(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._assign(node.target, node.value)

    def visit_Import(self, node: ast.Import) -> None:
        for each in node.names:
            name = each.asname or each.name.partition(".")[0]
            self.imported[self._of(name)] = each.name if each.asname else name

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for each in node.names:
            name = each.asname or each.name
            if not node.level:
                self.imported[self._of(name)] = f"{node.module}.{each.name}"

    def _assign(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Name) and value is not None:
            self.values[self._of(target.id)] = value

    def _visit_inside(self, node: ast.ClassDef | _Function) -> None:
        outside = self._path
        self._path = self._of(node.name)
        self.generic_visit(node)
        self._path = outside

    def _of(self, name: str) -> _Path:
        return (*self._path, name)


class _Sources:
    """The sources of modules, each read once, or again after it was written."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[int, _Source]] = {}

    def at(self, path: str) -> _Source | None:
        """Read a file of Python.

        :returns: `None` for what cannot be read: there may be no file.
        """
        try:
            written = os.stat(path).st_mtime_ns
            known = self._read.get(path)
            if known is not None and known[0] == written:
                return known[1]
            with tokenize.open(path) as file:
                source = _Source(ast.parse(file.read()))
        except (OSError, SyntaxError, ValueError):
            return None
        self._read[path] = written, source
        return source


class _Scope(NamedTuple):
    """Where names are looked up: in classes and functions, then in their module."""

    module: str
    path: _Path = ()


class _Found(NamedTuple):
    """An expression, if there is one, and where its names are looked up."""

    expression: ast.expr | None
    scope: _Scope


class _Reader:
    """Finds the parameters of a function that are marked with `TaskiqDepends`.

    :param modules: those that mypy knows, by name.
    :param sources: the code of these.
    """

    def __init__(self, modules: Mapping[str, MypyFile], sources: _Sources) -> None:
        self._modules = modules
        self._sources = sources
        # By full name, for one parameter: a name may be given by means of itself.
        self._followed: set[str] = set()

    def dependencies(self, function: FuncDef, current: str) -> set[str]:
        """Give the names of these parameters.

        :param current: the module that is checked: functions in functions are in it.
        """
        module, path = self._split(function.fullname)
        source = self._source(module or current)
        if source is None:
            return set()
        # A function that comes out of the cache has no line.
        found = source.functions.get(function.line) or source.functions.get(path)
        if found is None or found[0].name != function.name:
            return set()
        scope = _Scope(module or current, found[1])
        names: set[str] = set()
        for parameter, default in _parameters(found[0].args):
            self._followed.clear()
            if self._is_mark(_Found(default, scope)) or self._is_marked(
                _Found(parameter.annotation, scope),
            ):
                names.add(parameter.arg)
        return names

    def partially_called(self, name: str) -> SymbolNode | None:
        """Find the function of a variable that holds a `functools.partial`."""
        self._followed.clear()
        while True:
            value, scope = self._assigned(name)
            if isinstance(value, ast.Call) and value.args:
                value = value.args[0]
            if value is None:
                return self._symbol(*self._split(name))
            name = self._fullname(value, scope)

    def _symbol(self, module: str, path: _Path) -> SymbolNode | None:
        """Give what a name below a module stands for; for a class, its constructor."""
        names = self._modules[module].names if module else SymbolTable()
        node: SymbolNode | None = None
        for name in path:
            found = names.get(name)
            node = None if found is None else found.node
            names = node.names if isinstance(node, TypeInfo) else SymbolTable()
        if isinstance(node, TypeInfo):
            constructor = node.get("__init__")
            return None if constructor is None else constructor.node
        return node

    def _is_mark(self, found: _Found) -> bool:
        """Tell whether this is what `TaskiqDepends(...)` gives."""
        expression, scope = self._value(found)
        if not isinstance(expression, ast.Call):
            return False
        return self._is_marker(_Found(expression.func, scope))

    def _is_marked(self, found: _Found) -> bool:
        """Tell whether this is an `Annotated` with a mark, or a name of one."""
        expression, scope = self._value(found)
        match expression:
            case ast.Constant(value=str(text)):
                return self._is_marked(_Found(_parsed(text), scope))
            case ast.Subscript(value=generic, slice=ast.Tuple(elts=[inner, *others])):
                return self._fullname(generic, scope) in _ANNOTATED and (
                    any(self._is_mark(_Found(each, scope)) for each in others)
                    or self._is_marked(_Found(inner, scope))
                )
            case _:
                return False

    def _is_marker(self, found: _Found) -> bool:
        """Tell whether this is `TaskiqDepends`, under whatever name."""
        while isinstance(found.expression, ast.Name | ast.Attribute):
            fullname = self._fullname(found.expression, found.scope)
            if fullname in _MARKERS:
                return True
            found = self._assigned(fullname)
        return False

    def _value(self, found: _Found) -> _Found:
        """Give what a name stands for, however many there are on the way."""
        while isinstance(found.expression, ast.Name | ast.Attribute):
            found = self._assigned(self._fullname(found.expression, found.scope))
        return found

    def _assigned(self, fullname: str) -> _Found:
        """Give what was assigned to a name; nothing the second time."""
        module, path = self._split(fullname)
        source = None if fullname in self._followed else self._source(module)
        self._followed.add(fullname)
        value = None if source is None else source.values.get(path)
        return _Found(value, _Scope(module, path[:-1]))

    def _fullname(self, expression: ast.expr, scope: _Scope) -> str:
        """Give the full name of what a dotted name stands for; "" for all else."""
        if isinstance(expression, ast.Attribute):
            owner = self._fullname(expression.value, scope)
            return self._original(f"{owner}.{expression.attr}")
        if not isinstance(expression, ast.Name):
            return ""
        return self._local(expression.id, scope) or self._original(
            f"{scope.module}.{expression.id}",
        )

    def _local(self, name: str, scope: _Scope) -> str | None:
        """Look a name up in functions and classes, from the inside out."""
        source = self._source(scope.module)
        if source is None:
            return None
        for depth in range(len(scope.path), 0, -1):
            path = (*scope.path[:depth], name)
            if path in source.values:
                return ".".join((scope.module, *path))
            if path in source.imported:
                return self._original(source.imported[path])
        return None

    def _original(self, fullname: str) -> str:
        """Give the name in the module where it is defined, not only imported."""
        owner, _, name = fullname.rpartition(".")
        module = self._modules.get(owner)
        symbol = None if module is None else module.names.get(name)
        return fullname if symbol is None else symbol.fullname or fullname

    def _split(self, fullname: str) -> tuple[str, _Path]:
        """Split a full name into its module, "" for none, and what is below that."""
        names = fullname.split(".")
        for count in range(len(names) - 1, 0, -1):
            module = ".".join(names[:count])
            if module in self._modules:
                return module, tuple(names[count:])
        return "", tuple(names)

    def _source(self, module: str) -> _Source | None:
        file = self._modules.get(module)
        return None if file is None else self._sources.at(file.path)


def _parameters(
    arguments: ast.arguments,
) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Pair the parameters that have names with their defaults."""
    positional = [*arguments.posonlyargs, *arguments.args]
    without = [None] * (len(positional) - len(arguments.defaults))
    yield from zip(positional, [*without, *arguments.defaults], strict=True)
    yield from zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return None
