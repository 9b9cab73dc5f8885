"""Send, receive, reply: one call at a time on a socket whose other end may die and be replaced."""
