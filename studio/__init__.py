"""The app: command line, configuration, run folders, sampling."""

__version__ = "0.1.0"
