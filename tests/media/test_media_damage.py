"""With ``on_damage: mark``, a damaged video keeps its intact frames, and always the same ones."""

from typing import Any

import numpy as np
import pytest

from tests.media.conftest import FORMATS, Lab
from tests.videos import FASTSTART, HEVC, cut_short, numbers_of, spoil_packet
from tokpipe.errors import SourceError

CUT_FORMATS = {name: made for name, made in FORMATS.items() if "last" not in name} | {
    "plain.mp4": {**FASTSTART, "options": {"bf": "0"}},
    "hevc.mp4": {**FASTSTART, **HEVC},
}
del CUT_FORMATS["fragmented.mp4"]


@pytest.mark.parametrize("name", CUT_FORMATS)
def test_a_file_cut_short_keeps_its_first_frames_and_is_marked(name: str, lab: Lab) -> None:
    path = lab.write(name, 60, **CUT_FORMATS[name])
    whole = lab.decoder(backend="pyav").decode(path)
    cut_short(path, 40, inside=True)
    video = lab.decoder(on_damage="mark").decode(path)
    num = len(video.frames)
    assert 30 <= num <= 41
    assert np.array_equal(video.frames, whole.frames[:num])
    assert np.array_equal(video.pts_s, whole.pts_s[:num])
    # A cut in another container may leave no trace.
    assert video.damage is not None or not name.endswith(".mp4")


@pytest.mark.parametrize("name", ["clip.mkv", "clip.webm"])
def test_frames_before_an_undecodable_frame_are_kept(name: str, lab: Lab) -> None:
    path = lab.write(name, 30, **FORMATS[name])
    whole = lab.decoder(backend="pyav").decode(path)
    spoil_packet(path, 12)
    video = lab.decoder(on_damage="mark").decode(path)
    num = len(video.frames)
    assert 8 <= num <= 12
    assert np.array_equal(video.frames, whole.frames[:num])
    assert f"the clip ends after {num} of 30 frames: " in str(video.damage)
    assert video.backend == "pyav"


def test_a_damaged_file_always_decodes_to_the_same_frames(lab: Lab) -> None:
    path = lab.write("clip.mkv", 30)
    other = lab.write("other.mp4", 20)
    spoil_packet(path, 12)
    used = lab.decoder(on_damage="mark")
    videos = [used.decode(path), used.decode(path)]
    used.decode(other)
    videos.append(used.decode(path))
    used.close()
    videos.append(used.decode(path))
    videos.append(lab.decoder(on_damage="mark", backend="pyav").decode(path))
    for video in videos[1:]:
        assert np.array_equal(video.frames, videos[0].frames)
        assert np.array_equal(video.pts_s, videos[0].pts_s)
        assert video.damage == videos[0].damage


def test_segments_of_a_damaged_source_agree_on_their_number(lab: Lab) -> None:
    path = lab.write("clip.mp4", 60, **FASTSTART)
    cut_short(path, 40, inside=True)
    decoder = lab.decoder(on_damage="mark", max_clip_frames=17)
    total = decoder.decode(path).num_segments
    videos = [decoder.decode(path, segment=j, num_segments=total) for j in range(total)]
    numbers = [number for video in videos for number in numbers_of(video.frames)]
    assert numbers == list(range(len(numbers)))
    assert all(video.damage for video in videos)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.webm"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "decod"),
        ({"backend": "pyav"}, "decod"),
        ({"backend": "decord"}, "decod"),  # decord would repeat another frame in its place
        ({"on_damage": "mark", "min_clip_frames": 20}, "decod"),
        ({"on_damage": "mark", "backend": "decord", "min_clip_frames": 20}, "decod"),
    ],
)
def test_a_damaged_clip_is_rejected_if_its_intact_frames_are_not_enough(
    settings: dict[str, Any], message: str, name: str, lab: Lab
) -> None:
    path = lab.write(name, 30, **FORMATS[name])
    spoil_packet(path, 12)
    with pytest.raises(SourceError, match=message) as caught:
        lab.decoder(**settings).decode(path)
    assert caught.value.reason == "corrupt"


@pytest.mark.parametrize("fault", ["counts-fewer", "wrong-time", "ends-early", "drops", "doubles"])
def test_pyav_decodes_what_decord_gets_wrong(fault: str, lab: Lab) -> None:
    path = lab.write(f"{fault}.mp4", 20)
    video = lab.decoder(backends=("tests.media.planted_decord", "pyav")).decode(path)
    assert (numbers_of(video.frames), video.backend) == (list(range(20)), "pyav")
