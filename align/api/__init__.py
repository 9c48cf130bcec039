"""Functions for what the commands do: ``align.advise``, ``align.estimate`` and the others.

The command line parses, calls these and prints. They ask the registry for plugins and import none.
"""
