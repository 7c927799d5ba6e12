from taskiq.adapters.postgres import AsyncpgBroker, AsyncpgResultBackend

POSTGRES = "postgresql://localhost:5432/app"

broker = AsyncpgBroker(
    POSTGRES,
    channel_name="getting_started_channel",
    table_name="getting_started_messages",
).with_result_backend(
    # Results are removed when they are read.
    AsyncpgResultBackend(
        POSTGRES, keep_results=False, table_name="getting_started_results"
    )
)
# Milliseconds until what a killed worker held comes again; workers renew theirs.
broker.idle_timeout = 30_000


@broker.task
async def add(a: int, b: int) -> int:
    return a + b


@broker.task(batch=True, batch_size=50, batch_timeout=0.2)
async def double(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]
