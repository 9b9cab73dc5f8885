"""The serial device class: a pipe of bytes over VMBus, its server and client, and what is at the other end."""
