"""Where pictures come from: `sources` (what to read), `images` (pixels), `pipeline` (batches)."""
