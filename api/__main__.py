"""`python -m api` is `tollgate`."""

from api.cli import main

main()
