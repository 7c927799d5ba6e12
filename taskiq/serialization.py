"""Exceptions as data: what a result stores of an error, and the way back.

`prepare_exception` turns an exception into something a coder such as `json` or
`pickle` can dump, `exception_to_python` turns that into an exception again.
"""

import base64
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import takewhile
from types import FunctionType, MemberDescriptorType
from typing import (
    Any,
    Generic,
    Protocol,
    TypeAlias,
    TypeGuard,
    TypeVar,
    cast,
    runtime_checkable,
)

import pydantic

from taskiq.error import Error, declared_fields
from taskiq.exceptions import SecurityError

DecodedType = TypeVar("DecodedType")
EncodedType = TypeVar("EncodedType")
_T = TypeVar("_T")

UNWANTED_BASE_CLASSES = (Exception, BaseException, object)

#: Importable as before, and always empty: each call keeps track of its own chain.
SEEN_EXCEPTIONS_CACHE: set[int] = set()

#: Most exceptions written of one chain. JSON parsers and pydantic give up on deeply
#: nested data, so what is written must stay well below their limits.
_MAX_LINKS_WRITTEN = 100
#: Most exceptions read of one chain; beyond it is no honest writer.
_MAX_LINKS_READ = 200

#: Flag of classes that are not written in C (Python: `Py_TPFLAGS_HEAPTYPE`).
_HEAP_TYPE = 1 << 9

_MISSING = object()


@runtime_checkable
class Coder(Protocol, Generic[DecodedType, EncodedType]):
    """Anything that dumps and loads: the modules `json` and `pickle`, for example."""

    def loads(self, s: EncodedType, /) -> DecodedType:
        """Return the object that was dumped."""
        ...

    def dumps(self, obj: DecodedType, /) -> EncodedType:
        """Return the object in a form that `loads` takes."""
        ...


class ExceptionRepr(pydantic.BaseModel):
    """An exception as plain data: the shape of a stored error."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    exc_type: str
    """Qualified name of the class."""
    exc_message: tuple[Any, ...]
    """`args` of the exception."""
    exc_module: str | None
    """Module of the class."""
    exc_cause: "BaseException | ExceptionRepr | None" = pydantic.Field(
        default=None,
        union_mode="left_to_right",
    )
    """What it was raised from."""
    exc_context: "BaseException | ExceptionRepr | None" = pydantic.Field(
        default=None,
        union_mode="left_to_right",
    )
    """What was being handled when it was raised."""
    exc_suppress_context: bool = False
    """Whether tracebacks leave the context out."""
    exc_fields: dict[str, Any] | None = None
    """Attributes, notes among them. `None` where taskiq 0.13.0 wrote it, too."""
    exc_members: "list[BaseException | ExceptionRepr] | None" = None
    """What an exception group consists of."""
    exc_bytes: dict[str, str] | None = None
    """Base64 of what is bytes: by the index of the argument, or the attribute."""

    @pydantic.model_serializer(mode="wrap")
    def _leave_out_what_is_missing(
        self,
        handler: pydantic.SerializerFunctionWrapHandler,
    ) -> dict[str, Any]:
        # So that an ordinary error keeps the shape that taskiq 0.13.0 gives it.
        dumped: dict[str, Any] = handler(self)
        for name in ("exc_fields", "exc_members", "exc_bytes"):
            if getattr(self, name) is None:
                dumped.pop(name, None)
        return dumped


_Link: TypeAlias = BaseException | ExceptionRepr | None


def _args_or_text(exc: BaseException) -> tuple[Any, ...]:
    """Give the args of an exception, or its text where it has nothing else to say.

    An error of pydantic knows what was wrong with a value, but keeps it out of `args`.
    """
    if exc.args:
        return exc.args
    text = _safe_str(exc)
    return (text,) if text else ()


class _UnpickleableExceptionWrapper(Exception):  # noqa: N818 - name is in old pickles
    """Stands in for an exception that cannot be pickled, and restores it."""

    # Defaults on the class serve the pickles of taskiq 0.13.0, which lack these.
    exc_qualname: str | None = None
    exc_fields: dict[str, Any] | None = None
    exc_cause: BaseException | None = None
    exc_context: BaseException | None = None
    exc_suppress_context: bool = False

    def __init__(
        self,
        exc_module: str,
        exc_cls_name: str,
        exc_args: tuple[Any, ...],
        text: str = "",
    ) -> None:
        super().__init__(exc_module, exc_cls_name, exc_args, text)
        self.exc_module = exc_module
        self.exc_cls_name = exc_cls_name
        self.exc_args = exc_args
        self.text = text

    def __str__(self) -> str:
        return self.text

    @classmethod
    def from_exception(
        cls,
        exc: BaseException,
        coder: Coder[Any, Any],
    ) -> "_UnpickleableExceptionWrapper":
        """Return a wrapper of the exception and of what it was raised from."""
        return _Preparation(coder).wrap(exc)

    def restore(self) -> BaseException:
        """Return the exception, as its own class where that is loaded."""
        restored = self._restore_alone()
        # Pickle drops `__cause__` and `__context__`; the attributes survive it.
        cause = self.exc_cause if self.__cause__ is None else self.__cause__
        context = self.exc_context if self.__context__ is None else self.__context__
        _set_chain(
            restored,
            cause=_to_python(cause),
            context=_to_python(context),
            suppress_context=self.__suppress_context__ or self.exc_suppress_context,
        )
        return restored

    def _restore_alone(self) -> BaseException:
        qualname = self.exc_qualname or self.exc_cls_name
        found = _find_loaded(self.exc_module, qualname)
        if _is_exception_class(found):
            restored = _construct(found, self.exc_args, self.exc_fields)
            if restored is not None:
                return restored
        return create_exception_cls(self.exc_cls_name, self.exc_module)(*self.exc_args)


class _Preparation:
    """One call of `prepare_exception`: which exceptions it is in, how many may follow.

    A link is prepared once for each way that leads to it, and never tried out with
    its chain attached, so the cost is linear in what is returned.
    """

    def __init__(self, coder: Coder[Any, Any]) -> None:
        self._coder = coder
        self._open: set[int] = set()
        self._links_left = _MAX_LINKS_WRITTEN - 1

    def prepare(self, exc: BaseException) -> BaseException | ExceptionRepr:
        """Return what the coder can dump."""
        self._open.add(id(exc))
        carried = self._carried_by_coder(exc)
        prepared = self._represent(exc) if carried is None else carried
        self._open.remove(id(exc))
        return prepared

    def wrap(self, exc: BaseException) -> _UnpickleableExceptionWrapper:
        """Return a wrapper of the exception, its chain prepared."""
        self._open.add(id(exc))
        return self._attach_chain(self._wrap_alone(exc), exc)

    def _carried_by_coder(self, exc: BaseException) -> BaseException | None:
        if self._coder is json:  # Has no exceptions: spare users' constructors the try.
            return None
        if _survives(exc, self._coder):
            return exc
        downgraded = find_pickleable_exception(exc, self._coder)
        if downgraded is not None:
            return downgraded
        wrapper = self._wrap_alone(exc)
        if _survives(wrapper, self._coder):
            return self._attach_chain(wrapper, exc)
        return None

    def _represent(self, exc: BaseException) -> ExceptionRepr:
        cause, context = self._prepare_chain(exc)
        args = _args_or_text(exc)
        return ExceptionRepr(
            exc_type=type(exc).__qualname__,
            exc_message=ensure_serializable(args, self._coder),
            exc_module=type(exc).__module__,
            exc_cause=cause,
            exc_context=context,
            exc_suppress_context=exc.__suppress_context__,
            exc_fields=_serializable_fields(exc, self._coder),
            exc_members=self._prepare_members(exc),
            exc_bytes=_bytes_as_text(args, _fields_of(exc)),
        )

    def _prepare_members(
        self,
        exc: BaseException,
    ) -> list[BaseException | ExceptionRepr] | None:
        if not isinstance(exc, _group_classes()):
            return None
        group: Any = exc
        members: tuple[BaseException, ...] = group.exceptions
        prepared = (self._prepare_link(member) for member in members)
        return [member for member in prepared if member is not None]

    def _wrap_alone(self, exc: BaseException) -> _UnpickleableExceptionWrapper:
        wrapper = _UnpickleableExceptionWrapper(
            type(exc).__module__,
            type(exc).__name__,
            ensure_serializable(exc.args, self._coder),
            safe_repr(exc),
        )
        wrapper.exc_qualname = type(exc).__qualname__
        wrapper.exc_fields = _serializable_fields(exc, self._coder)
        return wrapper.with_traceback(exc.__traceback__)

    def _attach_chain(
        self,
        wrapper: _UnpickleableExceptionWrapper,
        exc: BaseException,
    ) -> _UnpickleableExceptionWrapper:
        cause, context = self._prepare_chain(exc)
        wrapper.exc_cause = None if isinstance(cause, ExceptionRepr) else cause
        wrapper.exc_context = None if isinstance(context, ExceptionRepr) else context
        wrapper.exc_suppress_context = exc.__suppress_context__
        _set_chain(
            wrapper,
            cause=exc.__cause__ if isinstance(cause, ExceptionRepr) else cause,
            context=exc.__context__ if isinstance(context, ExceptionRepr) else context,
            suppress_context=exc.__suppress_context__,
        )
        return wrapper

    def _prepare_chain(self, exc: BaseException) -> tuple[_Link, _Link]:
        context = None if exc.__suppress_context__ else exc.__context__
        return self._prepare_link(exc.__cause__), self._prepare_link(context)

    def _prepare_link(self, link: BaseException | None) -> _Link:
        """Return what the coder can dump, `None` where a chain bites its tail."""
        if link is None or id(link) in self._open or self._links_left == 0:
            return None
        self._links_left -= 1
        if self._links_left == 0:
            link = RuntimeError(f"chain cut after {_MAX_LINKS_WRITTEN - 1} exceptions")
        return self.prepare(link)


def safe_repr(obj: Any) -> str:
    """Return the repr of any object, also of one whose repr raises."""
    try:
        return repr(obj)
    except Exception:  # noqa: BLE001 - any object may come here
        return _safe_str(obj)


def _safe_str(obj: Any) -> str:
    if isinstance(obj, str):
        return obj
    try:
        return str(obj)
    except Exception as error:  # noqa: BLE001 - any object may come here
        stack = "\n".join(traceback.format_stack())
        return f"<Unrepresentable {type(obj)!r}: {_bare_repr(error)} {stack!r}>"


def _bare_repr(error: Exception) -> str:
    return _attempt(partial(repr, error)) or object.__repr__(error)


def subclass_exception(
    name: str,
    parent: type[Exception],
    module: str,
) -> type[Exception]:
    """Return a new class of that name below the parent."""
    return type(name, (parent,), {"__module__": module})


def create_exception_cls(
    name: str,
    module: str,
    parent: type[Exception] | None = None,
) -> type[Exception]:
    """Return a new exception class, below `Exception` if no parent is given."""
    return subclass_exception(name, Exception if parent is None else parent, module)


def ensure_serializable(
    items: Iterable[DecodedType],
    coder: Coder[DecodedType, Any],
) -> tuple[DecodedType | str, ...]:
    """Return the items, each that the coder cannot carry replaced by its repr."""
    return tuple(item if _survives(item, coder) else safe_repr(item) for item in items)


def find_pickleable_exception(
    exc: BaseException,
    coder: Coder[Any, Any],
) -> BaseException | None:
    """Return the exception as the nearest base class that the coder can carry."""
    for cls in _itermro(type(exc), UNWANTED_BASE_CLASSES):
        candidate = _attempt(partial(cls, *exc.args))
        if candidate is not None and _survives(candidate, coder):
            return candidate
    return None


def get_pickleable_exception(
    exc: BaseException,
    coder: Coder[Any, Any],
) -> BaseException | None:
    """Return the exception, its nearest base that the coder carries, or a wrapper."""
    if _survives(exc, coder):
        return exc
    downgraded = find_pickleable_exception(exc, coder)
    if downgraded is not None:
        return downgraded
    return _UnpickleableExceptionWrapper.from_exception(exc, coder)


def get_pickled_exception(exc: BaseException) -> BaseException:
    """Return what a wrapper stands for, any other exception as it is."""
    return exc.restore() if isinstance(exc, _UnpickleableExceptionWrapper) else exc


def _prepare_exception(
    exc: BaseException,
    coder: Coder[Any, Any],
) -> BaseException | ExceptionRepr:
    return _Preparation(coder).prepare(exc)


@pydantic.validate_call(config=pydantic.ConfigDict(arbitrary_types_allowed=True))
def prepare_exception(
    exc: BaseException,
    coder: Coder[Any, Any],
) -> BaseException | ExceptionRepr:
    """Return the exception in a form that the coder can dump.

    That is the exception itself, a base class instance or a wrapper if the coder
    carries exceptions, else an `ExceptionRepr`. What hangs together by causes, contexts
    and groups is cut after 100 exceptions, which the last one says.

    Raises `pydantic.ValidationError` for arguments of other types.
    """
    return _prepare_exception(exc, coder)


def exception_to_python(
    exc: BaseException | ExceptionRepr | dict[str, Any] | None,
) -> BaseException | None:
    """Return the exception that `prepare_exception` was given.

    Accepts its result, dumped or not. The class is looked up in what is loaded, never
    imported; an unknown one becomes a new `Exception` subclass of that name.

    An instance is made without a call of its class' own constructor: by the one of the
    built-in exception below it, with `args` and attributes set afterwards. The class'
    own `__str__` and `__repr__` are called to see that they work. Only if they do not,
    or for an error stored by taskiq 0.13.0, which keeps no attributes, constructors are
    called with the stored `args`: that of the class and then those of its bases.

    A plain `Exception` that names class and arguments stands for what cannot be made,
    and for what is no `Exception`: a stored `SystemExit`, `KeyboardInterrupt`,
    `GeneratorExit` or `CancelledError` must not end who reads it.

    Raises `pydantic.ValidationError` for data of another shape, and `SecurityError`
    for a type that is no exception or a chain of more than 200 exceptions.
    """
    if exc is None or isinstance(exc, BaseException):
        return _to_python(exc)
    _refuse_endless_chain(exc)
    return _to_python(ExceptionRepr.model_validate(exc))


def _refuse_endless_chain(exc: object) -> None:
    # Before validation, which would follow the links recursively.
    waiting, met = [exc], 0
    while waiting:
        node = waiting.pop()
        met += 1
        if met > _MAX_LINKS_READ:
            raise SecurityError(
                description=(
                    f"Expected a chain of at most {_MAX_LINKS_READ} exceptions, "
                    "got a longer one"
                ),
            )
        waiting.extend(link for link in _links_of(node) if link is not None)


def _links_of(node: object) -> list[object]:
    if isinstance(node, ExceptionRepr):
        return [node.exc_cause, node.exc_context, *(node.exc_members or ())]
    if not isinstance(node, dict):
        return []
    data = cast("dict[str, object]", node)
    members = data.get("exc_members")
    links = [data.get("exc_cause"), data.get("exc_context")]
    return [*links, *members] if isinstance(members, (list, tuple)) else links


def _to_python(exc: _Link) -> BaseException | None:
    if isinstance(exc, ExceptionRepr):
        return _from_repr(exc)
    return None if exc is None else get_pickled_exception(exc)


def _from_repr(exc: ExceptionRepr) -> BaseException:
    cls = _exception_class(exc)
    args, fields = _with_bytes(exc)
    if exc.exc_members is not None and issubclass(cls, _group_classes()):
        # A group of anything but exceptions holds what is one by now.
        cls = _as_exception_group(cls)
        args = (*args[:1], [_to_python(member) for member in exc.exc_members])
    restored = _construct(cls, args, fields)
    if restored is None:
        restored = plain_error(cls, exc.exc_message)
    _set_chain(
        restored,
        cause=_to_python(exc.exc_cause),
        context=_to_python(exc.exc_context),
        suppress_context=exc.exc_suppress_context,
    )
    return restored


def plain_error(cls: type[BaseException], args: tuple[Any, ...]) -> Exception:
    """Return an exception that names another one, which is not to be made."""
    return Exception(f"{cls}({args})")


def _exception_class(exc: ExceptionRepr) -> type[BaseException]:
    if exc.exc_module is None:
        return _stand_in_class(exc.exc_type, __name__)
    found = _find_loaded(exc.exc_module, exc.exc_type)
    if found is _MISSING:
        return _stand_in_class(exc.exc_type, exc.exc_module)
    if _is_exception_class(found):
        return found
    raise SecurityError(
        description=(
            f"Expected an exception class, got {exc.exc_module}.{exc.exc_type} "
            f"with payload {exc.exc_message}"
        ),
    )


def _stand_in_class(name: str, module: str) -> type[Exception]:
    try:
        return create_exception_cls(name, module)
    except ValueError as error:  # a NUL or a lone surrogate
        raise SecurityError(
            description=f"Expected the name of an exception class, got {name!r}",
        ) from error


def _find_loaded(module: str, qualname: str) -> object:
    """Return what the name stands for, or `_MISSING`.

    Looked up without running code: a module's `__getattr__` or a lazy module would
    import what the sender of the data asks for.
    """
    found: object = sys.modules.get(module)
    for name in qualname.split("."):
        found = inspect.getattr_static(found, name, _MISSING)
        if found is _MISSING:
            break
    return found


def _is_exception_class(found: object) -> TypeGuard[type[BaseException]]:
    return isinstance(found, type) and issubclass(found, BaseException)


def _construct(
    cls: type[BaseException],
    args: tuple[Any, ...],
    fields: dict[str, Any] | None,
) -> BaseException | None:
    """Return an instance made in the first way that works, `None` if none does."""
    if not issubclass(cls, Exception):
        return None
    for way in _ways_to_construct(cls, args, fields):
        made = _attempt(way)
        if isinstance(made, Exception):
            return made
    return None


def _ways_to_construct(
    cls: type[Exception],
    args: tuple[Any, ...],
    fields: dict[str, Any] | None,
) -> Iterator[Callable[[], BaseException | None]]:
    # Without the attributes that a constructor sets, the constructor has to.
    if fields is not None or issubclass(cls, Error) or not _has_constructor(cls):
        yield partial(_rebuild, cls, args, fields or {})
    yield partial(cls, *args)
    for base in _base_constructors(cls):
        yield partial(_construct_like, base, cls, args)


def _rebuild(
    cls: type[Exception],
    args: tuple[Any, ...],
    fields: dict[str, Any],
) -> BaseException | None:
    """Make an instance without running code of its class, but for showing it."""
    native = _native_base(cls)
    made = native.__new__(cls, *args)
    native.__init__(made, *args)
    _set_fields(made, fields)
    return made if _is_presentable(made) else None


def _native_base(cls: type[BaseException]) -> type[BaseException]:
    """Find the nearest base that is written in C, and sets up the memory of it."""
    return next(
        base
        for base in cls.__mro__
        if not base.__flags__ & _HEAP_TYPE or base in _group_classes()
    )


def _has_constructor(cls: type[BaseException]) -> bool:
    """Whether the class has a constructor that is written in Python."""
    made_by = (inspect.getattr_static(cls, name) for name in ("__init__", "__new__"))
    return any(isinstance(each, (FunctionType, staticmethod)) for each in made_by)


def _group_classes() -> tuple[type[Any], ...]:
    """Return the base of exception groups; Python 3.10 has it from a package, if so."""
    known = (sys.modules.get(name) for name in ("builtins", "exceptiongroup"))
    found = (getattr(module, "BaseExceptionGroup", None) for module in known)
    return tuple({group for group in found if group is not None})


def _as_exception_group(cls: type[BaseException]) -> type[BaseException]:
    if cls not in _group_classes():
        return cls
    group: type[BaseException] = vars(sys.modules[cls.__module__])["ExceptionGroup"]
    return group


def _set_fields(exc: BaseException, fields: dict[str, Any]) -> None:
    """Set attributes, but for those that would take the place of something else."""
    declared = declared_fields(type(exc)) if isinstance(exc, Error) else None
    for name, value in fields.items():
        if declared is not None and name not in declared and name != "__notes__":
            continue
        found = inspect.getattr_static(type(exc), name, None)
        if _is_slot(name, found):
            # Read-only, or not of the type that the built-in exception wants.
            with suppress(AttributeError, TypeError):
                object.__setattr__(exc, name, value)
        elif _is_settable(name, value) and not _is_taken(found):
            # Not by assignment, which runs properties and is refused when frozen.
            exc.__dict__[name] = value


def _is_slot(name: str, found: object) -> bool:
    """Whether an attribute is kept in a slot, as those of built-in exceptions are."""
    return isinstance(found, MemberDescriptorType) and not name.startswith("__")


def _is_settable(name: str, value: Any) -> bool:
    if name == "__notes__":
        notes = cast("list[object]", value) if isinstance(value, list) else [None]
        return all(isinstance(note, str) for note in notes)
    return not name.startswith("__")


def _is_taken(found: Any) -> bool:
    """Whether the class has something of its own there: a method or a property."""
    is_method = callable(found) or type(found) in (classmethod, staticmethod)
    return is_method or inspect.isdatadescriptor(found)


def _bytes_as_text(
    args: tuple[Any, ...],
    fields: dict[str, Any],
) -> dict[str, str] | None:
    values = {**{str(index): arg for index, arg in enumerate(args)}, **fields}
    return {
        name: base64.b64encode(value).decode()
        for name, value in values.items()
        if isinstance(value, bytes)
    } or None


def _with_bytes(exc: ExceptionRepr) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    """Return arguments and attributes, the bytes among them as bytes again."""
    args = {str(index): arg for index, arg in enumerate(exc.exc_message)}
    fields = None if exc.exc_fields is None else dict(exc.exc_fields)
    for name, text in (exc.exc_bytes or {}).items():
        value = _attempt(partial(base64.b64decode, text, validate=True))
        for values in (args, fields or {}):
            if value is not None and name in values:
                values[name] = value
    return tuple(args.values()), fields


def _base_constructors(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    """Yield the base classes with a constructor, down to the first built-in one.

    A built-in exception must not be made by a constructor further down: its own sets
    up what `str()` reads.
    """
    for base in (each for each in cls.__mro__ if issubclass(each, BaseException)):
        is_built_in = base.__module__ == "builtins"
        # From Python 3.14 on most of the built-in ones inherit their constructor.
        if base is not cls and (is_built_in or "__init__" in vars(base)):
            yield base
        if is_built_in:
            return


def _construct_like(
    base: type[BaseException],
    cls: type[BaseException],
    args: tuple[Any, ...],
) -> BaseException | None:
    made = cls.__new__(cls, *args)
    base.__init__(made, *args)
    # Without its own constructor an exception may lack what these need, and an error
    # that cannot be shown is worse than one of another class.
    return made if _is_presentable(made) else None


def _is_presentable(exc: BaseException) -> bool:
    return None not in (_attempt(partial(str, exc)), _attempt(partial(repr, exc)))


def _set_chain(
    exc: BaseException,
    *,
    cause: BaseException | None,
    context: BaseException | None,
    suppress_context: bool,
) -> None:
    # Not by assignment, which a frozen dataclass refuses.
    BaseException.__setattr__(exc, "__cause__", cause)
    BaseException.__setattr__(exc, "__context__", context)
    # Last: setting a cause sets it too.
    BaseException.__setattr__(exc, "__suppress_context__", suppress_context)


def _serializable_fields(
    exc: BaseException,
    coder: Coder[Any, Any],
) -> dict[str, Any] | None:
    fields = _fields_of(exc)
    kept = dict(zip(fields, ensure_serializable(fields.values(), coder), strict=True))
    slots = _slots_of(exc)
    kept |= {name: each for name, each in slots.items() if _survives(each, coder)}
    # Said to be none, so that nobody takes it for an error of taskiq 0.13.0.
    is_needed = _has_constructor(type(exc)) and not isinstance(exc, Error)
    return kept if kept or is_needed else None


def _fields_of(exc: BaseException) -> dict[str, Any]:
    """Return the attributes that an exception was given."""
    given = vars(exc)
    if not isinstance(exc, Error):
        # Groups of Python 3.10 keep their members there, which are told by themselves.
        group: Any = exc
        members = group.exceptions if isinstance(exc, _group_classes()) else given
        return {name: each for name, each in given.items() if each is not members}
    notes = {name: given[name] for name in ("__notes__",) if name in given}
    return exc.as_kwargs() | notes


def _slots_of(exc: BaseException) -> dict[str, Any]:
    """Return what is kept in slots and not in `args`: the filename of an OSError."""
    found = {
        name: getattr(exc, name, None)
        for base in type(exc).__mro__
        for name, member in vars(base).items()
        # The object without the attribute is nobody's business but the worker's.
        if base is not AttributeError or name != "obj"
        if _is_slot(name, member)
    }
    return {
        name: value
        for name, value in found.items()
        if value is not None and not any(value is arg for arg in exc.args)
    }


def _survives(obj: object, coder: Coder[Any, Any]) -> bool:
    try:
        coder.loads(coder.dumps(obj))
    except Exception:  # noqa: BLE001 - coders and the objects' own hooks raise anything
        return False
    return True


def _itermro(
    cls: type[BaseException],
    stop: Iterable[type[Any]],
) -> Iterable[type[BaseException]]:
    return takewhile(lambda base: base not in stop, cls.__mro__)


def _attempt(action: Callable[[], _T]) -> _T | None:
    try:
        return action()
    except Exception:  # noqa: BLE001 - runs constructors and coders of others
        return None
