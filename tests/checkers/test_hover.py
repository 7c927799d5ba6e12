"""What an editor shows of a task under the mouse: pyright, asked as editors ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent

APPLICATION = '''
from typing import Annotated

from taskiq import Context, InMemoryBroker, TaskiqDepends

broker = InMemoryBroker()


@broker.task(batch=True)
async def insert(rows: list[int], tenant: str = "") -> list[str]:
    """Insert rows."""
    return [str(row) for row in rows]


@broker.task
async def pay(
    amount: int,
    context: Annotated[Context, TaskiqDepends()],
) -> str:
    """Pay an amount."""
    return ""


async def main() -> None:
    await insert.kiq(1)
    await pay.kiq(1)
'''


class Editor:
    """The half of the language server protocol that a hover takes."""

    def __init__(self, server: subprocess.Popen[bytes], directory: Path) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self._input, self._output = server.stdin, server.stdout
        self._folder = {"uri": directory.as_uri(), "name": directory.name}
        self._file = (directory / "app.py").as_uri()
        self._asked = 0

    def open(self) -> None:
        """Open the application."""
        can = {"workspace": {"configuration": True, "workspaceFolders": True}}
        can["textDocument"] = {"hover": {"contentFormat": ["plaintext"]}}  # type: ignore[dict-item]
        folders = [self._folder]
        self.ask("initialize", capabilities=can, workspaceFolders=folders)
        self._tell("initialized", {})
        document = {"uri": self._file, "languageId": "python", "version": 1}
        document["text"] = APPLICATION
        self._tell("textDocument/didOpen", {"textDocument": document})

    def hover(self, line: str, name: str) -> str:
        """Give what is shown for a name in a line."""
        lines = APPLICATION.splitlines()
        number = next(n for n, each in enumerate(lines) if line in each)
        shown = self.ask(
            "textDocument/hover",
            textDocument={"uri": self._file},
            position={"line": number, "character": lines[number].index(name) + 1},
        )
        return str(shown["contents"]["value"])

    def ask(self, method: str, **params: Any) -> Any:
        """Ask the server, and answer what it asks before it knows."""
        self._asked += 1
        self._send({"id": self._asked, "method": method, "params": params})
        while True:
            message = self._receive()
            if "method" in message and "id" in message:
                items = message.get("params", {}).get("items", [])
                answer = [{"pythonPath": sys.executable} for _ in items]
                self._send({"id": message["id"], "result": answer})
            elif message.get("id") == self._asked:
                return message["result"]

    def _tell(self, method: str, params: Any) -> None:
        self._send({"method": method, "params": params})

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._input.write(b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        self._input.flush()

    def _receive(self) -> dict[str, Any]:
        length = 0
        while header := self._output.readline().strip():
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the server has ended"
        message: dict[str, Any] = json.loads(self._output.read(length))
        return message


@pytest.fixture
def editor(tmp_path: Path) -> Iterator[Editor]:
    (tmp_path / "app.py").write_text(APPLICATION, encoding="utf-8")
    settings = {"extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    command = "import pyright.langserver as server; server.entrypoint()"
    with subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", command, "--stdio"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        opened = Editor(server, tmp_path)
        opened.open()
        yield opened
        opened.ask("shutdown")
        server.terminate()


def test_hovering_shows_the_item_the_result_and_the_docstring(editor: Editor) -> None:
    batch = editor.hover("await insert.kiq", "kiq")
    assert "int,\n    t" in batch
    assert "AsyncTaskiqTask[str]" in batch
    assert "Send one message of the task." in batch
    assert "Insert rows." in editor.hover("await insert.kiq", "insert")

    plain = editor.hover("await pay.kiq", "kiq")
    assert "int,\n" in plain
    assert "Context" not in plain
