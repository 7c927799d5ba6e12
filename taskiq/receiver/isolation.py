"""Which parts of a failed batch to call again, so that only the culprits fail.

Decisions only: plain synchronous code over the indices of items. Whoever owns an
:class:`Isolation` makes the calls and reports what came of each.

A set of items whose call failed is split in halves, the first half is called, and the
search goes on in the half that must hold a culprit, down to a single item: binary
search. The other half waits; once a culprit is found, everything that waits is called
together. So each culprit costs about `log2(n)` calls, not `2 * log2(n)` as calling
both halves at every step would, and the innocent are called in few, large batches
(generalised binary splitting: F. K. Hwang, "A Method for Detecting All Defective
Members in a Population by Group Testing", J. Amer. Statist. Assoc. 67, 1972).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def most_extra_calls(size: int) -> int:
    """Say how many calls isolating the culprits of `size` items may take.

    The bound keeps an outage, in which every call fails, from becoming a storm.
    """
    return 4 * max(size - 1, 0).bit_length() + 4


class Isolation:
    """Finds the items that make a call fail.

    :param size: how many items the failed call had.
    :param error: what it failed with.
    :ivar errors: what became of the items that are settled by failing, by index.
    :ivar calls: how many extra calls were made.
    """

    def __init__(self, size: int, error: BaseException) -> None:
        self.errors: dict[int, BaseException] = {}
        self.calls = 0
        self._most_calls = most_extra_calls(size)
        # One of these makes a call fail, as far as is known.
        self._suspects: list[int] = list(range(size))
        # Nothing is known of these but that a larger call with them failed.
        self._waiting: list[int] = []
        # For each open item the smallest call it was in: its size and its error.
        self._blamed = dict.fromkeys(self._suspects, (size, error))
        self._called: list[int] = []

    def next_call(self) -> Sequence[int]:
        """Say which items to call together next, in order; none when it is over."""
        if self.calls == self._most_calls:
            self._give_up()
            return ()
        if not self._suspects:
            self._called = sorted(self._waiting)
        elif len(self._suspects) == 1:
            self._called = self._suspects
        else:
            self._called = self._suspects[: len(self._suspects) // 2]
        self.calls += bool(self._called)
        return self._called

    def succeeded(self) -> None:
        """Report that the items called last have their outcomes."""
        self._settle(self._called)

    def failed(
        self,
        error: BaseException,
        decided: Collection[int],
        *,
        is_final: bool,
    ) -> None:
        """Report that the items called last failed together.

        :param decided: positions in that call of items that have an outcome of their
            own all the same.
        :param is_final: whether the error is not one to look for culprits of.
        """
        done = {self._called[position] for position in decided}
        called = [index for index in self._called if index not in done]
        self._settle(done)
        if is_final or len(called) <= 1:
            self.errors.update(dict.fromkeys(called, error))
            self._settle(called)
            # This explains why larger calls failed: nothing is known of the others.
            self._waiting += self._suspects
            self._suspects = []
            return
        for index in called:
            if len(called) <= self._blamed[index][0]:
                self._blamed[index] = (len(called), error)
        found = set(called)
        self._waiting += [index for index in self._suspects if index not in found]
        self._waiting = [index for index in self._waiting if index not in found]
        self._suspects = called

    def _settle(self, indices: Collection[int]) -> None:
        done = set(indices)
        self._suspects = [index for index in self._suspects if index not in done]
        self._waiting = [index for index in self._waiting if index not in done]
        for index in done:
            del self._blamed[index]

    def _give_up(self) -> None:
        """Fail what is left with the error of the smallest call it was in."""
        for index, (_, error) in self._blamed.items():
            self.errors[index] = error
        self._settle(tuple(self._blamed))
