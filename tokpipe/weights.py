"""Where a job's weights are."""

from __future__ import annotations

from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.storage import Store, open_store


def find_weights(uri: str, options: StoreOptions) -> tuple[Store, str, int]:
    """Return the store that holds ``tokenizer.weights``, the key there and the size in bytes.

    Raises:
        ConfigError: there is nothing at ``uri``.
    """
    folder, _, key = uri.rpartition("/")
    store = open_store(folder, options)
    size = store.size(key)
    if size is None:
        raise ConfigError(
            f"tokenizer.weights: there is nothing at {uri}. Without weights there are no codes; "
            "put the file there, or correct the job."
        )
    return store, key, size
