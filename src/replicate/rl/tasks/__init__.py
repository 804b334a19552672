"""What a model is asked: one module a task, whose name is the task's."""
