"""One file a task: the file's name is the task's name in a configuration, and it defines one public `Task`."""

from models.discovery import one_class_a_file
from recallbench.task import Task

TASKS: dict[str, type[Task]] = one_class_a_file(__name__, __path__, Task)
"""Name -> class, for every file in this folder."""
