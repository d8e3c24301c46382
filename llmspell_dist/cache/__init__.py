"""The near cache: reads served from memory, kept right by what is published about each commit."""
