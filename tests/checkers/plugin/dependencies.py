"""What mypy with the plugin says of tasks with dependencies, pinned.

Without it, and to pyright, a dependency in an `Annotated` is one more parameter.
"""

import functools
import typing as t
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Annotated, Any, ParamSpec, TypeVar

from typing_extensions import assert_type

from taskiq import (
    AsyncTaskiqDecoratedTask,
    AsyncTaskiqTask,
    BatchContext,
    Context,
    InMemoryBroker,
    ScheduleSource,
    TaskiqDepends,
    async_shared_broker,
)
from taskiq.brokers.shared_broker import shared_task
from taskiq.scheduler.created_schedule import CreatedSchedule

from . import exported, needed
from .exported import Linked, Marked, Wants
from .needed import (
    Assigned,
    BatchRunner,
    Connection,
    Db,
    Described,
    Inherited,
    Mark,
    NoDependency,
    OfModule,
    Renamed,
    Runner,
    get_db,
    imported,
    imported_batch,
    of_partial,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")

broker = InMemoryBroker()
Ctx = Annotated[Context, TaskiqDepends()]


def logged(function: Callable[_P, _R]) -> Callable[_P, _R]:
    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return function(*args, **kwargs)

    return wrapper


# -- Where a mark stands, and how it is written -----------------------------------


@broker.task
async def bare(number: int, db: Annotated[Db, TaskiqDepends(get_db)]) -> float:
    return 1.0


@broker.task()
async def called(number: int, text: str, db: Connection, more: int = 0) -> float:
    return 1.0


@broker.task("named", queue="slow")
def sync(
    number: int,
    db: Db = TaskiqDepends(get_db),  # noqa: B008
    *,
    dry: bool = False,
) -> float:
    return 1.0


@broker.task
async def first(db: Connection, context: Ctx, number: int) -> float:
    return 1.0


@broker.task
async def only(context: Ctx) -> float:
    return 1.0


@broker.task
async def by_name(number: int, *, db: t.Annotated[Db, Mark], text: str) -> float:
    return 1.0


@broker.task
async def variadic(
    db: Described,
    other: Described,
    *numbers: int,
    **others: str,
) -> float:
    return 1.0


@broker.task
async def quoted(number: int, db: "needed.Connection", context: "Ctx") -> float:
    return 1.0


@broker.task
async def of_mark(number: int, db: Db = Mark) -> float:
    return 1.0


@broker.task
async def without(text: NoDependency, others: tuple[Connection, ...]) -> float:
    return 1.0


@broker.task
@logged
async def decorated(number: int, db: Connection) -> float:
    return 1.0


@broker.task
async def generic(number: _R, db: Connection) -> _R:
    return number


class Holder:
    Local = Annotated[Db, Mark]

    @staticmethod
    @broker.task
    async def task(number: int, db: Local) -> float:
        return 1.0


@broker.task
async def of_class(number: int, db: Holder.Local) -> float:
    return 1.0


@broker.task
async def renamed(number: int, a: Renamed, b: OfModule, c: Assigned) -> float:
    return 1.0


@broker.task
async def of_exported(
    number: int,
    a: Linked,
    b: Annotated[Db, Wants(get_db)],
    c: "exported.Linked",
    d: Db = Marked,
) -> float:
    return 1.0


async def marks_are_found() -> None:
    assert_type(await bare.kiq(1), AsyncTaskiqTask[float])
    assert_type(await bare.kiq(number=1), AsyncTaskiqTask[float])
    assert_type(await called.kiq(1, "a"), AsyncTaskiqTask[float])
    assert_type(await called.kiq(1, "a", more=2), AsyncTaskiqTask[float])
    assert_type(await sync.kiq(1), AsyncTaskiqTask[float])
    assert_type(await sync.kiq(1, dry=True), AsyncTaskiqTask[float])
    assert_type(await first.kiq(number=1), AsyncTaskiqTask[float])
    assert_type(await only.kiq(), AsyncTaskiqTask[float])
    assert_type(await by_name.kiq(1, text="a"), AsyncTaskiqTask[float])
    assert_type(await variadic.kiq(a="b"), AsyncTaskiqTask[float])
    assert_type(await quoted.kiq(1), AsyncTaskiqTask[float])
    assert_type(await of_mark.kiq(1), AsyncTaskiqTask[float])
    assert_type(await without.kiq("a", ()), AsyncTaskiqTask[float])
    assert_type(await decorated.kiq(1), AsyncTaskiqTask[float])
    assert_type(await generic.kiq(1), AsyncTaskiqTask[int])
    assert_type(await Holder.task.kiq(1), AsyncTaskiqTask[float])
    assert_type(await of_class.kiq(1), AsyncTaskiqTask[float])
    assert_type(await renamed.kiq(1), AsyncTaskiqTask[float])
    assert_type(await of_exported.kiq(1), AsyncTaskiqTask[float])


# -- Batch tasks ------------------------------------------------------------------


@broker.task(batch=True)
async def batch(numbers: list[int], tenant: str, db: Connection, c: Ctx) -> list[str]:
    return ["" for _ in numbers]


@broker.task(batch=True)
def sync_batch(numbers: list[int], db: Connection) -> list[str | Exception]:
    return ["" for _ in numbers]


@broker.task(batch=True, batch_results="shared")
async def batch_shared(
    numbers: list[int],
    db: Connection,
    context: BatchContext = TaskiqDepends(),  # noqa: B008
) -> list[str]:
    return []


@broker.task(batch=True)
async def batch_alone(numbers: list[int], tenant: str = "") -> list[str]:
    return ["" for _ in numbers]


@broker.task(batch=True)
async def batch_by_position(numbers: list[int], /, **names: str) -> list[str]:
    return ["" for _ in numbers]


async def the_item_of_a_batch_is_the_first_argument() -> None:
    assert_type(await batch.kiq(1, "a"), AsyncTaskiqTask[str])
    assert_type(await batch.kiq(1, tenant="a"), AsyncTaskiqTask[str])
    assert_type(await sync_batch.kiq(1), AsyncTaskiqTask[str])
    assert_type(await batch_shared.kiq(1), AsyncTaskiqTask[list[str]])


async def the_item_may_be_given_by_the_name_of_the_list() -> None:
    assert_type(await batch.kiq(numbers=1, tenant="a"), AsyncTaskiqTask[str])
    assert_type(await batch.kicker().kiq(tenant="a", numbers=1), AsyncTaskiqTask[str])
    assert_type(await batch_alone.kiq(numbers=1), AsyncTaskiqTask[str])
    assert_type(await batch_alone(numbers=1), str)
    calls = [batch_alone.call(numbers=1)]
    assert_type(await batch_alone.kiq_many(calls), list[AsyncTaskiqTask[str]])
    assert_type(await batch_alone.kiq_many([1]), list[AsyncTaskiqTask[str]])
    assert_type(await batch_by_position.kiq(1, numbers="a"), AsyncTaskiqTask[str])
    assert_type(await registered_batch.kiq(numbers=1), AsyncTaskiqTask[float])


# -- Other ways to register -------------------------------------------------------


@async_shared_broker.task
async def shared(number: int, db: Connection) -> float:
    return 1.0


@async_shared_broker.task(batch=True)
async def shared_batch(numbers: list[int], db: Connection) -> list[float]:
    return [1.0 for _ in numbers]


@shared_task
async def by_shared_task(number: int, db: Connection) -> float:
    return 1.0


@shared_task()
async def by_called_shared_task(number: int, db: Connection) -> float:
    return 1.0


registered = broker.register_task(imported)
registered_by_name = broker.register_task(func=imported, task_name="registered_by_name")
registered_batch = broker.register_task(imported_batch, batch=True)
registered_again = broker.register_task(bare, "again")
decorated_later = broker.task(Runner(2, Db()))
instance = broker.register_task(Runner(1, Db()), "instance")
made = broker.register_task(Runner, "made")
method = broker.register_task(Runner(1, Db()).method, "method")
class_method = broker.register_task(Runner.class_method, "class_method")
static_method = broker.register_task(Runner.static_method, "static_method")
inherited = broker.register_task(Inherited(1, Db()).method, "inherited")
made_inherited = broker.register_task(Inherited, "made_inherited")
batch_method = broker.register_task(
    Inherited(1, Db()).batch_method,
    "batch_method",
    batch=True,
)
batch_instance = broker.register_task(BatchRunner(), "batch_instance", batch=True)
exported_function = broker.register_task(exported.of_exported, "exported")
exported_default = broker.register_task(exported.of_wants, "exported_default")
partial = broker.register_task(functools.partial(of_partial, text="a"), "partial")
partial_by_position = broker.task("partial_by_position")(
    functools.partial(of_partial, 1),
)
partial_by_name = broker.register_task(needed.partial, "partial_by_name")
partial_of_partial = broker.register_task(needed.partial_of_partial, "twice")
partial_class = broker.register_task(functools.partial(Runner, number=1), "of_class")
batch_partial = broker.register_task(
    functools.partial(needed.imported_batch_for, tenant="a"),
    "batch_partial",
    batch=True,
)


def make_local_task() -> AsyncTaskiqDecoratedTask[[int], Coroutine[Any, Any, float]]:
    from taskiq import TaskiqDepends as Depends  # noqa: PLC0415

    Local = Annotated[Db, Depends(get_db)]  # noqa: N806

    @broker.task
    async def local(number: int, db: Local) -> float:
        return 1.0

    return local


async def it_is_the_same_for_every_way_to_register() -> None:
    assert_type(await shared.kiq(1), AsyncTaskiqTask[float])
    assert_type(await shared_batch.kiq(1), AsyncTaskiqTask[float])
    assert_type(await by_shared_task.kiq(1), AsyncTaskiqTask[float])
    assert_type(await by_called_shared_task.kiq(1), AsyncTaskiqTask[float])
    assert_type(await registered.kiq(1), AsyncTaskiqTask[float])
    assert_type(await registered_by_name.kiq(1), AsyncTaskiqTask[float])
    assert_type(await registered_batch.kiq(1), AsyncTaskiqTask[float])
    assert_type(await registered_again.kiq(1), AsyncTaskiqTask[float])
    assert_type(await decorated_later.kiq(1), AsyncTaskiqTask[float])
    assert_type(await instance.kiq(1), AsyncTaskiqTask[float])
    assert_type(await made.kiq(1), AsyncTaskiqTask[Runner])
    assert_type(await method.kiq(1), AsyncTaskiqTask[float])
    assert_type(await class_method.kiq(1), AsyncTaskiqTask[float])
    assert_type(await static_method.kiq(1), AsyncTaskiqTask[float])
    assert_type(await make_local_task().kiq(1), AsyncTaskiqTask[float])
    assert_type(await inherited.kiq(1), AsyncTaskiqTask[float])
    assert_type(await made_inherited.kiq(1), AsyncTaskiqTask[Inherited])
    assert_type(await batch_method.kiq(1), AsyncTaskiqTask[float])
    assert_type(await batch_instance.kiq(numbers=1), AsyncTaskiqTask[float])
    assert_type(await exported_function.kiq(1), AsyncTaskiqTask[float])
    assert_type(await exported_default.kiq(1), AsyncTaskiqTask[float])


async def what_is_left_of_a_partial_is_sent() -> None:
    assert_type(await partial.kiq(1), AsyncTaskiqTask[float])
    assert_type(await partial.kiq(1, more=2, text="b"), AsyncTaskiqTask[float])
    assert_type(await partial_by_position.kiq("a"), AsyncTaskiqTask[float])
    assert_type(await partial_by_name.kiq(1), AsyncTaskiqTask[float])
    assert_type(await partial_of_partial.kiq(1), AsyncTaskiqTask[float])
    assert_type(await partial_class.kiq(), AsyncTaskiqTask[Runner])
    assert_type(await batch_partial.kiq(numbers=1), AsyncTaskiqTask[float])


# -- Other ways to send, and a direct call ----------------------------------------


async def many_kickers_and_schedules_do_without_them(source: ScheduleSource) -> None:
    now, second = datetime.now().astimezone(), timedelta(seconds=1)
    assert_type(await bare.kiq_many([1]), list[AsyncTaskiqTask[float]])
    calls = [called.call(1, "a", more=3)]
    assert_type(await called.kiq_many(calls), list[AsyncTaskiqTask[float]])
    assert_type(await sync_batch.kiq_many([1]), list[AsyncTaskiqTask[str]])
    items = [batch.call(1, "a")]
    assert_type(await batch.kicker().kiq_many(items), list[AsyncTaskiqTask[str]])
    kicker = batch.kicker().with_labels(queue="slow").with_task_id("id")
    assert_type(await kicker.kiq(1, "a"), AsyncTaskiqTask[str])
    assert_type(await bare.kicker().kiq_many([1]), list[AsyncTaskiqTask[float]])
    by_cron = await bare.schedule_by_cron(source, "* * * * *", 1)
    assert_type(await by_cron.kiq(), AsyncTaskiqTask[float])
    by_time = await batch.schedule_by_time(source, now, 1, "a")
    assert_type(await by_time.kiq(), AsyncTaskiqTask[str])
    by_interval = await called.kicker().schedule_by_interval(source, second, 1, "a")
    assert_type(await by_interval.kiq(), AsyncTaskiqTask[float])
    of_sync = await sync.schedule_by_interval(source, 5, 1)
    assert_type(of_sync, CreatedSchedule[float])


async def a_direct_call_takes_them(db: Db, context: BatchContext) -> None:
    assert_type(await bare(1, db), float)
    assert_type(await first(db, context, 1), float)
    assert_type(sync(1, db, dry=True), float)
    assert_type(sync(1), float)
    assert_type(await batch(1, "a", db, context), str)
    assert_type(await bare.original_func(1, db), float)


async def the_function_itself_takes_the_list(db: Db, context: BatchContext) -> None:
    own = await batch.original_func([1], "a", db, context)
    assert_type(own, list[str])
    assert_type(await batch_alone.original_func(numbers=[1]), list[str])
    assert_type(sync_batch.original_func([1], db), list[str | Exception])
    assert_type(await batch_instance.original_func([1], db), list[float])


# -- What is wrong ----------------------------------------------------------------


async def what_is_wrong_is_refused(
    source: ScheduleSource,
    db: Db,
    context: BatchContext,
) -> None:
    await bare.kiq("a")  # type: ignore[call-overload]
    await bare.kiq()  # type: ignore[call-overload]
    await bare.kiq(1, db)  # type: ignore[call-overload]
    await bare.kiq(1, db=db)  # type: ignore[call-overload]
    await without.kiq("a")  # type: ignore[call-overload]
    await called.kiq(1)  # type: ignore[call-overload]
    await called.kiq(1, "a", 2)  # type: ignore[call-overload]
    await sync.kiq(1, db=db)  # type: ignore[call-arg]
    await first.kiq(1)  # type: ignore[call-overload]
    await variadic.kiq(1)  # type: ignore[call-overload]
    await batch.kiq([1], "a")  # type: ignore[call-overload]
    await batch.kiq(1)  # type: ignore[call-overload]
    await batch.kicker().kiq(1, 2)  # type: ignore[call-overload]
    await batch.kiq(number=1, tenant="a")  # type: ignore[call-overload]
    await batch.kiq(numbers=[1], tenant="a")  # type: ignore[call-overload]
    await batch.original_func(1, "a", db, context)  # type: ignore[arg-type]
    await batch_by_position.kiq(numbers="a")  # type: ignore[call-overload]
    await partial.kiq("a")  # type: ignore[call-overload]
    await partial.kiq(1, db=db)  # type: ignore[call-overload]
    await partial.kiq(1, "a")  # type: ignore[call-overload]
    await partial_by_name.kiq(1, db)  # type: ignore[call-overload]
    await batch_partial.kiq([1])  # type: ignore[call-overload]
    await registered_batch.kiq("a")  # type: ignore[call-overload]
    await shared.kiq("a")  # type: ignore[call-overload]
    await instance.kiq("a")  # type: ignore[arg-type]
    await bare.kiq_many(["a"])  # type: ignore[list-item]
    await batch.kiq_many([1])  # type: ignore[list-item]
    await bare.kicker().kiq_many(["a"])  # type: ignore[list-item]
    await bare.schedule_by_cron(source, "* * * * *", "a")  # type: ignore[arg-type]
    await bare.schedule_by_interval(source, 5)  # type: ignore[call-arg]
    await batch.schedule_by_time(source, datetime.now(), 1)  # type: ignore[call-arg]
    await bare(1)  # type: ignore[call-arg]
    await batch(1, "a")  # type: ignore[call-arg]
