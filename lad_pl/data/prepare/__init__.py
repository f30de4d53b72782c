"""Build annotation files from captioned images, published benchmarks and tables of one's own."""
