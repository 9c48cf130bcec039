"""The quickstart: from nothing to an aligned model that shows it improved, through the same interfaces as any run.

It writes a model, data and a run file, trains the run, measures every stage's export on held-out rows and draws
the page. A package above core and plugins; the command in ``align.cli.quickstart`` only calls ``pipeline.quickstart``.
"""
