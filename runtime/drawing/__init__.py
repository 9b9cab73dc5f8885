"""Charts and pages: pure functions from data to SVG and HTML. They know nothing of benchmarks.

A page is one file that works offline: no script, font or style comes from elsewhere. Whatever text comes in is escaped.
"""
