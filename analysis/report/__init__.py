"""Tell a diagnosis on a screen of text and on a page."""
