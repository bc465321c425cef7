"""Pillow's warnings are ours to silence, and nobody else's."""

import io
import threading
import warnings

import numpy as np
import piexif
import pytest
from PIL import Image

from ingress import metadata
from ingress.decode import Limits, decode
from ingress.pillow import ignore_pillow_warnings
from provenance import exif
from utils.contracts import Sample


def file_of(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(buffer, kind, **options)
    return buffer.getvalue()


def record() -> bytes:
    return piexif.dump({"0th": {piexif.ImageIFD.Make: b"Maker"}, "1st": {}, "thumbnail": file_of("JPEG")})


def decode_gif() -> object:
    return decode(file_of("GIF"), "a", Limits(2**20, 2**20, 1, 2**20))


def compare_thumbnail() -> object:
    raw = file_of("JPEG", exif=record())
    sample = Sample("a", raw, np.zeros((48, 64, 3), np.uint8), "JPEG", metadata=metadata.read(raw, "JPEG"))
    return exif.measure(sample)


@pytest.mark.parametrize(
    ("work", "library", "name"),
    [(decode_gif, Image, "open"), (compare_thumbnail, Image.Image, "convert")],
)
def test_two_threads_that_overlap_leave_the_filters_of_the_process_alone(monkeypatch, work, library, name):
    """The first to enter the library is the first to leave it: two catch_warnings would restore in the wrong order."""
    real, met, first_left = getattr(library, name), threading.Barrier(2), threading.Event()
    entered: list[int] = []

    def meet(*args: object, **options: object) -> object:
        me = threading.get_ident()
        if me in entered:  # what follows is the same for both
            return real(*args, **options)
        entered.append(me)
        if len(entered) == 1:
            second.start()  # only now, so that it enters second
        met.wait(10)
        if me != entered[0]:
            assert first_left.wait(10)
        return real(*args, **options)

    def first_work() -> None:
        work()
        first_left.set()

    work()  # whatever is imported or built once is no part of this
    before = list(warnings.filters)
    monkeypatch.setattr(library, name, meet)
    first, second = threading.Thread(target=first_work), threading.Thread(target=work)
    first.start()
    first.join(20)
    second.join(20)
    assert len(entered) == 2
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="of ours"):
        warnings.warn("of ours", stacklevel=1)


def test_the_filter_is_installed_once_and_touches_pillow_alone():
    for _ in range(3):
        ignore_pillow_warnings()
    assert sum(getattr(module, "pattern", "") == r"PIL\." for _, _, _, module, _ in warnings.filters) == 1
    warnings.warn_explicit("a bomb", UserWarning, "Image.py", 1, module="PIL.Image")
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn_explicit("ours", UserWarning, "decode.py", 1, module="ingress.decode")
