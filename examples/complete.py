"""From two folders of images to a verdict by one's own model: python examples/complete.py [FOLDER [PHOTO]]

FOLDER (data/ of the checkout) holds real/ and ai/; without PHOTO, img_ml_verify.py's own is judged. These are the five
lines of docs/guide.md, run from the checkout one after the other, with every answer shown. Each is a command that runs
alone too: the next one goes on from the files that it left.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str]) -> None:
    folder = str(Path(argv[0]).resolve()) if argv else "data"
    photo = str(Path(argv[1]).resolve()) if len(argv) > 1 else "--demo"
    run("-c", "from utils.device import get_device; print(get_device())")
    run("-m", "scripts.make_dataset_csv", folder)
    run("-m", "scripts.clean_dataset")
    answer = run("-m", "fusion.train_fusion", "--dataset", "dataset.csv")
    (model,) = re.findall(r"IMGV_FUSION=(\S+)", answer)
    os.environ["IMGV_FUSION"] = model
    run("img_ml_verify.py", photo)


def run(*arguments: str) -> str:
    """Run one command, show it, its answer and its time, and return what it printed; end where it fails."""
    print("$ python", *arguments, flush=True)
    started = time.monotonic()
    ended = subprocess.run([sys.executable, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=False)
    print(f"{ended.stdout}({time.monotonic() - started:.0f} s)\n", flush=True)
    if ended.returncode:
        sys.exit(ended.returncode)  # the command has said on stderr what to do
    return ended.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
