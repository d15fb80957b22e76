"""The sweep of this project: cats and dogs as a task, from the command line to a promoted model."""
