"""One format to write a file. adapters.formats.export imports every module that it finds here."""
