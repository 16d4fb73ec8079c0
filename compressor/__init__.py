"""Statistics become masks (pure selection), masks become a masked model, a masked model becomes a bundle on disk."""
