"""What a store lists, in a form that tests compare."""

from tokpipe.storage import Store


def sizes(store: Store, prefix: str) -> dict[str, int]:
    """Size in bytes of each object below a prefix, by key."""
    return {found.key: found.size_bytes for found in store.list(prefix)}
