"""What is there for good is not walked again."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_a_full_collection_looks_at_next_to_nothing_of_what_was_loaded() -> None:
    program = """
import gc, server.serve
from engine.collector import spare_what_is_here
before = len(gc.get_objects())
spare_what_is_here()
print(before, len(gc.get_objects()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60
    )
    before, after = map(int, done.stdout.split())
    assert before > 10_000
    assert after < 100
