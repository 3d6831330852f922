"""`detkit serve`: a detector behind HTTP, and one page to try it.

settings   what can be chosen
schema     what goes in and out, and its description as OpenAPI
receiving  the bytes of a request: limits on size, time and kind
batching   one thread that detects, on several pictures at once where several wait
service    from the bytes of a picture to its detections
metrics    what Prometheus reads
app        the addresses
server     the socket, signals, the start and the end
"""
