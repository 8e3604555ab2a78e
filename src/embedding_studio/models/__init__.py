"""Import paths that the reference page documents; everything here is defined elsewhere."""
