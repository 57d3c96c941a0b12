"""Recipe of the embedded base: a small model of SDXL's architecture, pretrained on composed emoji scenes."""
