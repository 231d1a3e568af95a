"""The same HTTP server with a store that answers at once and keeps nothing: what the route itself costs."""

import os
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn

from api.database import open_database
from api.flusher import Receipt
from api.http.app import create_app
from api.settings import from_environment


class Nowhere:
    """In place of api.flusher.Flusher."""

    async def store(self, groups: Sequence[Any], **_: object) -> Receipt:
        return Receipt(stored=len(groups), duplicate=0)


def main() -> None:
    settings = from_environment(os.environ)
    app: Any = create_app(
        open_database(str(settings.database_url), connections=settings.connections), settings
    )
    app.ingest = type(app.ingest)(Nowhere(), settings.kong_subject, app.ingest.clock)
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"running at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
