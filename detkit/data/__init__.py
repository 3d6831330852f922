"""Data sets, augmentation and the loader: files on disk in, `Batch` out."""
