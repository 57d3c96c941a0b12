"""The built-in base model: a small network of SDXL's architecture in `base/` (recipe: benchmarks/embedded)."""
