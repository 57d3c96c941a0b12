"""For all tests: one thread a process, no hub, user folders of their own, and shapes checked at run time."""

from __future__ import annotations

import os
import tempfile

_HOME = tempfile.mkdtemp(prefix="spectral-studio-tests-")
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    SPECTRAL_STUDIO_CACHE=f"{_HOME}/cache",
    SPECTRAL_STUDIO_STATE=f"{_HOME}/state",
    SPECTRAL_STUDIO_DATA=f"{_HOME}/data",
    COLUMNS="200",
)

from contextlib import suppress  # noqa: E402
from importlib import import_module  # noqa: E402

from jaxtyping import install_import_hook  # noqa: E402

with suppress(ImportError):  # Triton compiles these from their source, which the hook would wrap
    for kernels in ("adapters.triton_kernels", "trainers.fast.triton_kernels"):
        import_module(kernels)

from tests.shapes import leave_the_others_alone  # noqa: E402

leave_the_others_alone()
install_import_hook(["adapters", "trainers"], "tests.shapes.check_arrays")

import torch  # noqa: E402

torch.set_num_threads(1)
