"""`compeft serve` ends when it is told to, also at the one moment at which its main thread holds the lock of what it waits for."""

import subprocess
import sys
from pathlib import Path

UNLUCKY = """
import signal, sys, threading
from pathlib import Path
from types import SimpleNamespace
from compeft_server.app import server as serving

class Unlucky(threading.Event):
    def wait(self, timeout=None):
        with self._cond:
            signal.raise_signal(signal.SIGTERM)
        return super().wait(timeout)

serving.threading = SimpleNamespace(Event=Unlucky, Thread=threading.Thread)
serving.serve(serving.Settings(Path(sys.argv[1])), lambda *_: None)
print("ended")
"""


def test_a_signal_while_the_lock_is_held_ends_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", UNLUCKY, str(tmp_path)], capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout.splitlines()[-1] == "ended", done.stderr
