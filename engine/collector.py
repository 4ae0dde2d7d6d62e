"""Python's garbage collector, kept away from what is there for good."""

import gc


def spare_what_is_here() -> None:
    """Objects that live now are looked at no more. Called once, when everything is loaded.

    A full collection looks at all objects that may be part of a cycle: those of the imported modules alone are more
    than a hundred thousand, which takes longer than several passes, while every stream waits.
    """
    gc.collect()
    gc.freeze()
