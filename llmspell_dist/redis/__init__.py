"""Everything that touches Redis or its libraries: connections, lanes, scripts and servers."""
