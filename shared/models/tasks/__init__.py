"""The tasks: one module each, found by :func:`shared.models.task.find_task`."""
