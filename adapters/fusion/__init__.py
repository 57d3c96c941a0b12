"""Several adapters made one: ways to do so (ways/, one a file), and what each does to the others (report)."""
