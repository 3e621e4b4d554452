"""One unit of work on one descriptor, as Prefect tasks, and the plain code that they call.

`transfer` and `session` know nothing of Prefect and can be used without it.
"""
