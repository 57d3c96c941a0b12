"""One way to start a factor pair a file. adapters.registry imports every module that it finds here."""
