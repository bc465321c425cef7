"""The parts that all front ends share: memory, shares of the downloads, and what decoding will take."""

import asyncio
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from inference.pipeline import Place, Room, Shares
from ingress.cost import decoding_bytes
from ingress.decode import Limits, decode
from ingress.sources import limits_of
from utils.settings import Settings

LIMITS = limits_of(Settings.of().decode)


def image(kind: str, size: tuple[int, int] = (300, 200), **options: object) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, (9, 200, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def animation(kind: str, frames: int) -> bytes:
    buffer = BytesIO()
    first, *rest = (Image.fromarray(np.full((40, 50), 20 * number, np.uint8)) for number in range(frames))
    first.save(buffer, kind, save_all=True, append_images=rest)
    return buffer.getvalue()


async def passes(*waiting: object) -> list[bool]:
    """Which of them are through once everything that can run has run."""
    tasks = [asyncio.ensure_future(each) for each in waiting]
    await asyncio.sleep(0.01)
    done = [task.done() for task in tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return done


def test_pixels_wait_until_those_before_them_have_left():
    async def main():
        room = Room(100)
        with Place(room) as first:
            await first.reserve(60)
            assert await passes(Place(room).reserve(50)) == [False]
            first.keep(40)  # decoded, it takes less
            with Place(room) as second:
                assert await passes(second.reserve(50)) == [True]
        with Place(room) as third:
            await third.reserve(100)

    asyncio.run(main())


def test_one_image_gets_through_however_large_it_is_and_others_wait_in_order():
    async def main():
        room = Room(100)
        order = []

        async def take(name, size):
            with Place(room) as place:
                await place.reserve(size)
                order.append(name)
                await asyncio.sleep(0.01)

        await asyncio.gather(take("huge", 500), take("large", 90), take("small", 20), take("last", 10))
        assert order == ["huge", "large", "small", "last"]
        assert room.fits(100)

    asyncio.run(main())


def test_files_count_but_never_keep_the_only_image_out():
    async def main():
        room = Room(100)
        with Place(room) as files, Place(room) as pixels:
            files.hold(150)
            await pixels.reserve(80)
            assert await passes(Place(room).reserve(1)) == [False]
        assert room.fits(100)

    asyncio.run(main())


def test_one_caller_has_a_share_of_the_places_and_the_next_goes_to_who_has_fewest():
    async def main():
        shares, order = Shares(3, 2), []
        blocked = asyncio.Event()

        async def download(caller, wait):
            async with shares.of(caller):
                order.append(caller)
                if wait:
                    await blocked.wait()

        greedy = [asyncio.create_task(download("greedy", True)) for _ in range(9)]
        await asyncio.sleep(0.01)
        assert order == ["greedy"] * 2
        await asyncio.wait_for(asyncio.gather(*(download("other", False) for _ in range(5))), 5)
        assert order == ["greedy"] * 2 + ["other"] * 5
        greedy[8].cancel()  # one that waits
        blocked.set()
        await asyncio.gather(*greedy, return_exceptions=True)
        assert order.count("greedy") == 8

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_the_header_tells_what_decoding_takes(kind):
    raw = image(kind)
    assert decoding_bytes(raw, LIMITS) == 300 * 200 * (2 * (3 + 1) + 4)
    assert decoding_bytes(raw, LIMITS) > decode(raw, "", LIMITS).nbytes - len(raw)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_every_frame_that_is_judged_counts(kind):
    raw = animation(kind, 5)
    assert decoding_bytes(raw, LIMITS) == 40 * 50 * (2 * (3 * 5 + 1) + 4)


def test_what_will_be_refused_takes_nothing():
    small = Limits(1 << 20, 1000, 8, 1000)
    assert [decoding_bytes(raw, small) for raw in (b"", b"<html>", image("PNG"))] == [0, 0, 0]


def test_an_animation_keeps_no_more_pixels_than_the_largest_still():
    sample = decode(animation("GIF", 6), "", Limits(1 << 20, 3 * 40 * 50, 8, 1 << 20))
    assert (len(sample.frames), sample.frame_count) == (2, 6)
    assert sample.frames[-1].mean() == pytest.approx(100, abs=1)  # the last is among them
