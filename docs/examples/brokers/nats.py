from nats.js.api import ConsumerConfig, StreamConfig

from taskiq.adapters.nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

NATS = "nats://localhost:4222"

broker = PullBasedJetStreamBroker(
    NATS,
    subject="getting-started-subject",
    stream_name="getting-started-stream",
    durable="getting-started-durable",
    # A stream keeps what was acknowledged, too: a week here, run or not. (The plugin's
    # consumers do not go with retention by work queue.)
    stream_config=StreamConfig(
        name="getting-started-stream",
        subjects=["getting-started-subject"],
        max_age=7 * 24 * 3600,
    ),
    consumer_config=ConsumerConfig(
        # Seconds until what a killed worker held comes again; workers renew theirs.
        ack_wait=30,
        # For all processes together: 1000 of the batch task and 100 others, twice.
        max_ack_pending=2200,
    ),
    # Many in one request. Without a timeout it waits until there are so many.
    pull_consume_batch=100,
    pull_consume_timeout=5,
).with_result_backend(
    # Results are removed when they are read.
    NATSObjectStoreResultBackend(
        NATS, keep_results=False, bucket_name="getting-started-results"
    )
)


@broker.task
async def add(a: int, b: int) -> int:
    return a + b


@broker.task(batch=True, batch_size=50, batch_timeout=0.2)
async def double(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]
