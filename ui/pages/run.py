"""One run: how far it is, what it draws, what can be asked of it, and what went wrong, if so."""
