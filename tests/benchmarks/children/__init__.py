"""Scripts that measure, each run in a process and an environment of its own.

`environments.Interpreter.run` starts them and reads the one JSON object they print.
They import only what their own environment has; of the checkout only this package.
"""
