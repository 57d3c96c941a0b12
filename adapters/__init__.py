"""The adapter methods: pure torch, knowing nothing of diffusers, pictures or jobs.

Nothing is imported here, so that `from adapters.errors import StudioError` does not pay for torch.
"""
