"""The web pages, and the small API beside them. Nothing here imports torch: see docs/ui.md."""
