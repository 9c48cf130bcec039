"""The inside of the sandbox: standard library only, run by a clean interpreter that has never seen the trainer.

Every import is paid by every run, and ``typing`` costs as much as all else: it is imported for type checkers only.
"""
