"""The room of code that server and clients share.

It imports neither server nor client.
"""
