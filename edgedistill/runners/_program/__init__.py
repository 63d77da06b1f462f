"""The program that is measured: packed into one zip file, which runs here and on a device, as
`PYTHONPATH=program.zip python -m _program JOB ANSWER`. It needs Python 3.10, numpy and the file's runtime.

It imports nothing of the rest of the package, so that its memory is the runtime's.
"""
