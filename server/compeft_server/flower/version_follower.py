"""Following an expert log from beside it: the state at each version, for a conductor whose own program wants the arrays back.

One state is kept, in memory. It is led on as a client's is, every step held against its signed digest.
"""

import numpy as np

from compeft_core import Layout, State, Vector
from compeft_proto import answer_checks
from compeft_proto.sync_answer import apply_steps
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.flower.conductor import Conductor


class Follower:
    """One expert, of this layout, as a run of a conductor sees it; from no version at first."""

    def __init__(self, conductor: Conductor, expert: str, layout: Layout) -> None:
        self._conductor, self._expert, self._layout = conductor, expert, layout
        self._genesis: pb.Genesis | None = None
        self._version, self._state = -1, State(np.zeros(layout.size, np.float32), b"")

    def begin(self, genesis: pb.Genesis, state: Vector) -> None:
        """Version 0 was published by this very program: its state need not come back."""
        self._genesis, self._version, self._state = genesis, 0, State(state, genesis.state_digest)

    def state(self, version: int, run: str, number: int) -> Vector:
        """The state at `version`, which is not older than the one before: float32 of shape (layout.size,), not to be written to.

        Errors: those of `Conductor.fetch`; WrongBaseError if a step leads elsewhere than was signed.
        """
        if version != self._version:
            answer, payloads = self._conductor.fetch(self._expert, self._version, version, run, number)
            self._genesis = self._genesis or answer_checks.genesis_of(answer.steps, self._expert)
            self._state = apply_steps(answer, payloads, self._genesis, self._layout, self._state)
            self._version = version
        return self._state.vector
