"""What `detkit predict` does: pictures, videos and streams in; drawings, records and data sets out.

From files to frames: media, folders, naming, reading, decoding. From frames to detections: inference, tiles, tta,
choice, tracking. From there to files: saving, video, records, journal, data_set. All of it: run, with ahead,
interrupts, summary.
"""
