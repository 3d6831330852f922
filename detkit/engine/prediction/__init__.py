"""What `detkit predict` does: pictures, videos and streams in; drawings, records and data sets out.

frames, settings      what travels from the readers to the writers, and what can be chosen
"""
