"""Check what the wheel and the sdist hold: `check_dist.py DIRECTORY`."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path


def wheel_faults(names: list[str]) -> list[str]:
    """Name what a wheel lacks, or has and must not have."""
    top_level = {name.split("/")[0] for name in names}
    strangers = sorted(
        name
        for name in top_level
        if name != "taskiq" and not name.endswith(".dist-info")
    )
    faults = [f"{name} is not part of the package" for name in strangers]
    if "taskiq/py.typed" not in names:
        faults.append("taskiq/py.typed is missing")
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        faults.append("the licence is missing")
    if any("tests" in name.split("/") for name in names):
        faults.append("it contains tests")
    return faults


def sdist_faults(names: list[str]) -> list[str]:
    """Name what an sdist lacks."""
    inside = {name.partition("/")[2] for name in names}
    wanted = ("pyproject.toml", "README.md", "LICENSE", "taskiq/py.typed")
    return [f"{name} is missing" for name in wanted if name not in inside]


def the_one(directory: Path, pattern: str) -> Path:
    """Return the only file of that pattern."""
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        sys.exit(f"expected one {pattern} in {directory}, found {len(found)}")
    return found[0]


def main() -> None:
    """Exit with every fault found, or say what was checked."""
    directory = Path(sys.argv[1])
    wheel = the_one(directory, "*.whl")
    sdist = the_one(directory, "*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        faults = [f"{wheel.name}: {each}" for each in wheel_faults(archive.namelist())]
    with tarfile.open(sdist) as archive:
        faults += [f"{sdist.name}: {each}" for each in sdist_faults(archive.getnames())]
    if faults:
        sys.exit("\n".join(faults))
    sys.stdout.write(f"{wheel.name} and {sdist.name} hold what they should\n")


if __name__ == "__main__":
    main()
