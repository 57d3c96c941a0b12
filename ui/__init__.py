"""The storey of the web pages; nothing stands on it yet."""
