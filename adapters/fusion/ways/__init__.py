"""One way to fuse a file. adapters.fusion.way imports every module that it finds here."""
