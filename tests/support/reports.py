"""The processes' end of the lines to a hub: what the applications of tests import."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket

HUB = ("127.0.0.1", int(os.environ["TASKIQ_TEST_HUB"]))


def hello(kind: str, **fields: object) -> bytes:
    """Make the first line of a connection, which says what it is for."""
    process = multiprocessing.current_process()
    report = {"kind": kind, "pid": os.getpid(), "name": process.name, **fields}
    return json.dumps(report).encode() + b"\n"


def report(kind: str, **fields: object) -> None:
    """Tell the hub something, from any thread or process."""
    with socket.create_connection(HUB) as connection:
        connection.sendall(hello(kind, **fields))
        connection.recv(16)  # it was noted


def open_line(kind: str) -> socket.socket:
    line = socket.create_connection(HUB)
    line.sendall(hello(kind))
    return line
