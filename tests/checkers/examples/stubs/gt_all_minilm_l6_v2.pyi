# What the example with a real model uses of a package that is not installed for checks.
from typing import Any

def load_model(device: str | None = None) -> Any: ...
