from taskiq.adapters.rabbitmq import AioPikaBroker, Exchange, Queue
from taskiq.adapters.redis import RedisAsyncResultBackend

broker = AioPikaBroker(
    "amqp://guest:guest@localhost:5672",
    # What a process may hold: 1000 of the batch task below, and 100 others. The default
    # of 10 lets no larger batch fill.
    qos=1100,
    # Durable quorum queues, as by default: they count how often a message came back.
    exchange=Exchange(name="getting-started-exchange"),
    task_queues=[Queue(name="getting-started-queue")],
    dead_letter_queue=Queue(name="getting-started-dead"),
    delay_queue=Queue(name="getting-started-delay"),
).with_result_backend(
    # RabbitMQ keeps no results. In Redis they expire after ten minutes.
    RedisAsyncResultBackend(
        "redis://localhost:6379",
        prefix_str="getting-started",
        result_ex_time=600,
    )
)


@broker.task
async def add(a: int, b: int) -> int:
    return a + b


@broker.task(batch=True, batch_size=50, batch_timeout=0.2)
async def double(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]
