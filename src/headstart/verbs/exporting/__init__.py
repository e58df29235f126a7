"""How a RUN becomes a file of another library: each format is written, and opened again to compare its features."""
