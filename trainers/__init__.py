"""From pictures to an adapter file. A trainer is a generator of events (trainers.loop.train)."""

import os

# both libraries report things that nothing here depends on: a missing torchvision, modules cast by .to()
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
