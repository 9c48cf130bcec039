"""The inside of the sandbox: standard library only, run by a clean interpreter that has never seen the trainer."""
