"""One method a file. adapters.registry imports every module that it finds here."""
