"""Many runs at once: planned and checked as a whole, done by the queue or by a Ray cluster, told in one report."""
