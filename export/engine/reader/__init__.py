"""A file -> layers: what is damaged is refused, shapes are computed and checked."""
