"""A real Tollgate server process for tests, on a port the system gives."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

ADMIN_KEY = "tg_test_admin"
START_SECONDS = 60.0


@dataclass
class Server:
    """`with Server(...) as server:` runs until the block ends; `environment` is added to a clean one."""

    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    _process: "subprocess.Popen[str] | None" = None
    _ready: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def process(self) -> "subprocess.Popen[str]":
        assert self._process is not None
        return self._process

    def start(self) -> None:
        self.lines.clear()
        self._ready.clear()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api", "serve", "--port", "0", *self.arguments],
            env={**clean, "TOLLGATE_API_KEY": ADMIN_KEY, **self.environment},
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        assert self._ready.wait(START_SECONDS), f"the server did not start:\n{self.output}"
        assert self.url, f"the server ended:\n{self.output}"

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line)
            if found := re.search(r"running at (http://\S+)", line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def kill(self) -> None:
        """As a crash would: SIGKILL, and no goodbye."""
        self.process.kill()
        self.process.wait()
        self.url = ""

    def stop(self) -> int:
        """Orderly; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def client(self, key: str | None = ADMIN_KEY) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)
