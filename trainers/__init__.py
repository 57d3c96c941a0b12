"""From pictures to an adapter file. A trainer is a generator of events (trainers.loop.train)."""

import os

# transformers reports at import that torchvision is missing, which nothing here uses
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
