"""Other programs' adapter files: names (who calls a layer what), reading any of them, writing one format a file."""
