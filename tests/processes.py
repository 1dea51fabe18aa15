"""Running a script in one process, or in several that form a process group of torch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import Any


def run_script(script: str, *arguments: Any, processes: int = 1) -> None:
    """Run the Python `script` with `arguments` in each process; where one fails, end the others and show its errors.

    There is no time limit: a busy machine is no failure.
    """
    environment = dict(os.environ)
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    workers = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
        workers.append(
            subprocess.Popen(
                command, env=environment | (place if processes > 1 else {}), stderr=subprocess.PIPE, text=True
            )
        )
    try:
        while any(worker.poll() is None for worker in workers) and not any(worker.poll() for worker in workers):
            time.sleep(0.05)
        failed = [worker for worker in workers if worker.poll()]
        assert not failed, failed[0].communicate()[1][-3000:]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.communicate()
