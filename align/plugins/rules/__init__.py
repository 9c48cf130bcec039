"""The built-in rules, a page for each subject; ids are given where they are registered (align.plugins.builtin)."""
