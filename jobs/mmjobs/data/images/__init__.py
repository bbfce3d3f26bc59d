"""Images: files to pixels, as the vision encoder wants them."""
