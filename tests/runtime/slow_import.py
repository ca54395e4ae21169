"""An import that takes long: as of a module of C, an exception would become another."""

import time

try:
    print("ready", flush=True)
    time.sleep(60)
except BaseException as error:
    raise SystemError("initialization failed") from error
