"""The peak of a program is its own, whatever large process started it."""

import subprocess
import sys

from palate.memory import peak_bytes


def test_a_peak_is_the_programs_own():
    here = bytearray(300 * 2**20)
    here[:: 2**12] = b"\1" * len(here[:: 2**12])  # touched, page by page
    assert peak_bytes() > len(here)
    script = (
        "from palate.memory import peak_bytes; before = peak_bytes(); x = bytes(50 * 2**20) * 1; "
        "y = bytearray(x); print(before, peak_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 150 * 2**20 and after - before > 40 * 2**20
