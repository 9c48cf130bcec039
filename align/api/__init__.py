"""What the commands do, as functions: ``align.advise``, ``align.estimate`` and the others are found here.

The command line parses, calls these and prints. They ask the registry for plugins and import none.
"""
