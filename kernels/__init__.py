"""Triton kernels: none yet.

This folder installs as ``pfgm_fast.kernels`` and imports Triton only where a kernel is launched.
"""

if __name__ != "pfgm_fast.kernels":
    # On a path that starts at the project's root this folder would shadow any distribution that is called `kernels`.
    raise ImportError(
        f"this folder is the package pfgm_fast.kernels, but was imported as {__name__!r}: install pfgm_fast and import "
        "pfgm_fast.kernels; to reach another package of that name, take pfgm_fast's source tree off sys.path"
    )


def unavailable() -> str | None:
    """Why the Triton backend of the operator cannot run."""
    return "this version of pfgm_fast has no Triton kernels"
