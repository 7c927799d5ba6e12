"""The same batch application on every broker: nothing but its line is changed."""

from __future__ import annotations

from typing import Any

from .stage import Client, results_of, values_of

#: What is sent, and what comes of it on every line: the task, its arguments, the value
#: or the error that its own sender reads.
MESSAGES: list[tuple[str, tuple[Any, ...], Any]] = [
    *(("measure", ("x" * size, "cm"), f"{size} cm") for size in range(1, 22)),
    ("measure", ("", "cm"), "ValueError('an empty word', 'cm')"),
    ("measure", ("", "mm"), "ValueError('an empty word', 'mm')"),
    *(("measure", ("y" * size, "mm"), f"{size} mm") for size in range(1, 5)),
    ("measure", ([], "cm"), "ValidationError"),
    *(("settle", (amount,), f"{amount} after 0") for amount in range(12)),
    *(("settle", (-amount,), f"{-amount} after 1") for amount in range(1, 8)),
    *(("refuse", (number,), "ValueError('all of them')") for number in range(4)),
    *(("share", (number,), 10) for number in range(5)),
    *(("requeue_odd", (number,), f"{number} at last") for number in range(9)),
]


async def test_every_sender_gets_what_its_own_message_came_to(client: Client) -> None:
    retried = {"settle": {"retry_on_error": True, "max_retries": 3}}
    handles = [
        await client.send(name, *args, **retried.get(name, {}))
        for name, args, _ in MESSAGES
    ]
    results = await results_of(handles)

    got = [
        "ValidationError" if "validation error" in str(value) else value
        for value in values_of(results)
    ]
    assert got == [expected for _, _, expected in MESSAGES]


async def test_items_of_one_message_join_the_others_and_each_has_its_outcome(
    client: Client,
) -> None:
    """Seven single words, and two dozen in one message, with an empty one."""
    words = ["z" * size for size in range(1, 24)] + [""]
    singles = [await client.send("measure", "x" * size, "in") for size in range(1, 8)]
    chunk = await client.kicker("measure").kiq_chunk(words, "in")
    results = await results_of([*singles, chunk])

    assert values_of(results[:7]) == [f"{size} in" for size in range(1, 8)]
    items = results[7].raise_for_error().return_value
    expected = [f"{size} in" for size in range(1, 24)]
    assert values_of(items) == [*expected, "ValueError('an empty word', 'in')"]
    assert results[7].labels == {"batch_chunk": 24}


async def test_messages_that_arrive_together_share_a_call(client: Client) -> None:
    """The sum of its call is the result of each."""
    results = await results_of(await client.send_all("share", [1, 2, 3, 4, 5]))
    assert values_of(results) == [15] * 5
