"""Pure: no clock, socket, file, process or metric. Laws at the top of each file."""
