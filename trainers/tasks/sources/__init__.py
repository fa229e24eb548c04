"""Where problems come from: one file per family of sources, `catalogue.py` lists them."""
