"""What columns of tables hold: types that can be carried, and fields within columns."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.formats.tables import from_parquet, to_parquet

_types = pa.types
_PLAIN = {pa.large_string(): pa.string(), pa.string_view(): pa.string(), pa.bool8(): pa.bool_()}
_PLAIN |= {pa.large_binary(): pa.binary(), pa.binary_view(): pa.binary()}


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the plain type with the same values: Arrow cannot sort or merge views, large types,
    dictionaries or extension types, even nested."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if _types.is_dictionary(kind) or _types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if _types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if hasattr(kind, "value_field"):  # lists of all kinds
        element = pa.field("element", plain_type(kind.value_type))
        return pa.list_(element, getattr(kind, "list_size", -1))
    if _types.is_struct(kind):
        names = [field.name for field in kind]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"has a struct with two fields {repeated[0]!r}")
        # Nullable, because a row with a problem has no values.
        return pa.struct([(field.name, plain_type(field.type)) for field in kind])
    return kind


def plain(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return an array as ``kind``: its plain type, or one that several tables have in common."""
    if "list_view" in str(array.type):  # Arrow's own cast returns an invalid list
        return pa.array(array.to_pylist(), kind)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array if array.type == kind else pc.cast(array, kind)


def is_media(kind: pa.DataType) -> bool:
    """Whether this is a ``Video``, ``Image`` or ``Audio`` column of Hugging Face datasets."""
    names = {field.name for field in kind} if _types.is_struct(kind) else ()
    return names == {"bytes", "path"} and kind.field("bytes").type in (pa.binary(), pa.null())


def within(kind: pa.DataType, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], pa.DataType]:
    """Return the types of all fields within this type, by where Parquet has them."""
    found: dict[tuple[str, ...], pa.DataType] = {}
    for field in map(kind.field, range(kind.num_fields)):
        path = (*at, field.name if _types.is_struct(kind) else "list.element")
        found |= {path: field.type, **within(field.type, path)}
    return found


def find(inner: Mapping[tuple[str, ...], pa.DataType], name: str) -> tuple[str, ...]:
    """Return where a column, or the field ``a.b`` within one, is; empty if there is none."""
    path = (name,) if (name,) in inner else tuple(name.split("."))
    return path if path in inner else ()


def check_carried(label: str, columns: pa.Schema) -> None:
    """Check that each column comes back from Parquet, which plans and side tables use."""
    for field in columns:
        row = pa.table([pa.nulls(1, field.type)], schema=pa.schema([field]))
        try:
            back = [from_parquet("", to_parquet(one), "table") for one in (row, row.slice(1))]
            pa.concat_tables(back).take(pa.array([0]))
            trouble = "" if back[1].schema == row.schema else f"returns as {back[1].schema}"
        except (pa.ArrowException, CorruptOutput) as error:
            trouble = str(error)
        if trouble:
            found = f"{label}: column {field.name!r} holds {field.type}"
            why = f"which cannot be carried into the output ({trouble})"
            raise ConfigError(f"{found}, {why}. Convert it to text, or leave it out of the table.")
