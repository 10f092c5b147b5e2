"""Camera sources, and the watch over them."""
