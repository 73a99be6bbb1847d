"""Whether a file is the one that it was."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path


State = list[int]


def state_of(file: Path) -> State:
    """Size, time of change and inode of a file: what tells whether it is as it was when it was looked at."""
    return _state(file.stat())


def _state(found: os.stat_result) -> State:
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def states_of(files: Iterable[Path]) -> dict[Path, State]:
    """The state of each file."""
    return {file: state_of(file) for file in files}


def check_states(states: Mapping[Path, State]) -> None:
    """Raises `ValueError` for the first of some files that is not in its state any more, or gone."""
    for file, state in states.items():
        try:
            found = state_of(file)
        except FileNotFoundError:
            found = None
        if found != state:
            raise _changed(file, state, found)


def open_in_state(file: Path, state: State) -> int:
    """A descriptor, to be read from, of a file. Raises `ValueError` if it is not in that state any more, or gone."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        raise _changed(file, state, None) from None
    found = _state(os.fstat(descriptor))
    if found != state:
        os.close(descriptor)
        raise _changed(file, state, found)
    return descriptor


def _changed(file: Path, state: State, found: State | None) -> ValueError:
    if found is not None and found[2] == state[2] and found[0] < state[0]:
        return ValueError(f"{file} has become shorter: make these features again.")
    return ValueError(
        f"{file} was {'removed' if found is None else 'replaced or changed'} after it was opened, as when a store is "
        "built again: open the store and its splits again."
    )
