"""From pictures to an adapter file. A trainer is a generator of events (trainers.loop.train)."""

import os
import sys

# both libraries report things that nothing here depends on: a missing torchvision, modules cast by .to()
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
if sys.platform == "linux":  # torch's allocator reads it when it first gives out memory: less lies about unused
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
