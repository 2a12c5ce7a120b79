"""The newest signed head of its aggregator's audit log that a client has seen, in a file of its state folder.

    log-head.txt    a C2SP tlog-checkpoint, as the aggregator signed it

`compeft audit verify --against SITE` reads it: whoever has it can show that a log was rewound or rewritten. What is written is whole, but
not synced: a power failure may bring an older head back, which is a head all the same.
"""

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from compeft_core.errors import FormatError
from compeft_proto.errors import SignatureError
from compeft_proto.keys import PublicKey
from compeft_proto.log_head import SignedHead, read_note
from compeft_proto.site_layout import HEAD_FILE


class RememberedHead:
    """The HeadMemory of the client whose state folder this is; processes that share it take turns."""

    def __init__(self, state: Path) -> None:
        self._folder, self._file = state, state / HEAD_FILE

    def known(self, keys: Sequence[PublicKey]) -> SignedHead | None:
        """The head in the file; None without a file, or if no key of `keys` has signed it: then it is another aggregator's."""
        try:
            return read_note(self._file.read_bytes(), keys)
        except (FileNotFoundError, SignatureError):
            return None
        except FormatError as error:
            raise FormatError(f"{self._file} is damaged, remove it: {error}") from error

    def keep(self, head: SignedHead, key: PublicKey) -> None:
        """Write a head, unless a longer one is there."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / f".{HEAD_FILE}.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            with suppress(FormatError):
                there = self.known((key,))
                if there is not None and there.size >= head.size and there.origin == head.origin:
                    return
            beside = self._folder / f".{HEAD_FILE}.{os.getpid()}"
            beside.write_bytes(head.note(key))
            beside.replace(self._file)
