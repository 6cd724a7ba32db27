"""From anything that names an image to the pixels that a model takes."""
