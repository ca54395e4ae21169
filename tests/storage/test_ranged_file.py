import io

from hypothesis import given
from hypothesis import strategies as st

from tokpipe.storage.ranged import RangedFile

steps = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 30)),
    st.tuples(st.just("readinto"), st.integers(0, 30)),
    st.tuples(st.just("start"), st.integers(0, 30)),
    st.tuples(st.just("on"), st.integers(0, 9)),
    st.tuples(st.just("end"), st.integers(-20, 5)),
)


@given(st.binary(max_size=20), st.lists(steps, max_size=20))
def test_it_reads_like_a_file_of_the_same_bytes(data: bytes, steps: list[tuple[str, int]]) -> None:
    ranged, plain = RangedFile(len(data), lambda start, end: data[start:end]), io.BytesIO(data)
    whence = {"start": io.SEEK_SET, "on": io.SEEK_CUR, "end": io.SEEK_END}
    for step, number in steps:
        if step == "read":
            assert ranged.read(number) == plain.read(number)
        elif step == "readinto":
            into, wanted = bytearray(number), bytearray(number)
            assert ranged.readinto(into) == plain.readinto(wanted)
            assert into == wanted
        else:
            ranged.seek(number, whence[step])
            plain.seek(number, whence[step])
        assert ranged.tell() == plain.tell()
    assert ranged.readable()
    assert ranged.seekable()


def test_it_fetches_only_what_is_read() -> None:
    requests = []

    def get_range(start: int, end: int) -> bytes:
        requests.append((start, end))
        return bytes(end - start)

    file = RangedFile(100, get_range)
    file.seek(-8, io.SEEK_END)
    file.read(8)
    file.read(8)
    file.seek(10)
    file.read(5)
    assert requests == [(92, 100), (10, 15)]
