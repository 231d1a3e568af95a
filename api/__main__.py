"""`python -m api` is `tollgate`."""

import gc

gc.disable()  # nothing of all that is imported is garbage, and to look for it takes a tenth of the time
from api.cli import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main()
