"""Keyboard, mouse and screen: the protocols of the three synthetic devices, both ends of each, and the RFB server."""
